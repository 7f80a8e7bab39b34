"""The audit log: who changed what, when, by which request."""
