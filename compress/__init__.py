"""Tersor's engine: lift, quantize, export and measure TorchScript models.

Usable without the service. Knows nothing of HTTP, Celery or SQL.
"""
