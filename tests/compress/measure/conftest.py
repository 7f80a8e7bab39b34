from __future__ import annotations

from tests.compress.measure.clock import clock

__all__ = ["clock"]
