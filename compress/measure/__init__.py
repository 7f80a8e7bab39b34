"""Figures that are measured, never guessed: size, latency, quality, fidelity, environment."""
