"""Figures for Prometheus: of this process's requests, and of what the database knows."""
