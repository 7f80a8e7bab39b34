"""Quantization and half precision of lifted graphs."""

from compress.quantize.half import to_float32, to_half
from compress.quantize.static import Quantized, quantize_static

__all__ = ["Quantized", "quantize_static", "to_float32", "to_half"]
