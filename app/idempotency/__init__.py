"""`Idempotency-Key`: a request that creates, sent twice, creates once."""
