"""Quantization and half precision of lifted graphs."""

from compress.quantize.drafting import Quantized
from compress.quantize.dynamic import quantize_dynamic
from compress.quantize.gpu_integers import to_integers
from compress.quantize.half import to_float32, to_half
from compress.quantize.half_computing import to_any_half, to_half_computing
from compress.quantize.static import quantize_static
from compress.quantize.weight_only import quantize_weight_only

__all__ = [
    "Quantized", "quantize_dynamic", "quantize_static", "quantize_weight_only", "to_any_half",
    "to_float32",
    "to_half", "to_half_computing", "to_integers",
]  # fmt: skip
