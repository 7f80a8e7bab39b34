"""The machine that figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from compress.devices import CPU
from compress.result import Environment

_CPU_INFO = Path("/proc/cpuinfo")
_TOLD = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx_tile",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "neon_dotprod",
    "i8mm": "i8mm",
}


def read_environment(threads: int, device: torch.device = CPU) -> Environment:
    """Return the processor's name and instruction sets, torch's version and the thread count.

    Args:
        threads: Of computation on the processor.
        device: Where files were run; of a GPU its name is told.
    """
    name, flags = parse_cpu_info(_CPU_INFO.read_text() if _CPU_INFO.exists() else "")
    return Environment(
        cpu=name or platform.processor() or platform.machine(),
        isa=[told for flag, told in _TOLD.items() if flag in flags],
        threads=threads,
        torch=torch.__version__,
        device="cpu" if device.type == "cpu" else f"cuda: {torch.cuda.get_device_name(device)}",
    )


def parse_cpu_info(text: str) -> tuple[str, frozenset[str]]:
    """Return the name and flags of the first processor in the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name", ""), frozenset(flags.split())


def int8_saturates(environment: Environment) -> bool:
    """Whether int8 kernels add pairs of products in 16 bits, which full ranges overflow.

    torch's x86 kernels use 32-bit sums where there is AVX512-VNNI, and only there.
    """
    return "avx512_vnni" not in environment.isa
