"""Health, readiness and what this installation can do."""
