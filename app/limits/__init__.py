"""Limits per project: bytes stored, unfinished jobs, requests a second."""
