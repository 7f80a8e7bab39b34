"""Tersor's HTTP side: requests in, rows and wake-up messages out. Never imports torch."""
