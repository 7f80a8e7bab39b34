"""Uploads that come in pieces and can be resumed: tus 1.0.0 (https://tus.io)."""
