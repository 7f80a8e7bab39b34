"""Celery worker and everything around a running job. The worker process imports no torch."""
