"""Freed memory stays with the process while a model learns, and goes back after."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
import torch

from compress.train.allocator import kept_memory

_ELEMENTS = 12 * 2**20  # 48 MiB: more than glibc ever keeps by itself

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")


def faults_of_a_block() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(_ELEMENTS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_pages_of_a_freed_block_are_used_again() -> None:
    faults_of_a_block()
    anew = faults_of_a_block()
    with kept_memory():
        kept = min(faults_of_a_block() for _ in range(5))  # the first ones are new
    assert kept < anew / 4


def test_memory_goes_back_afterwards() -> None:
    with kept_memory():
        torch.zeros(_ELEMENTS)
        inside = resident_bytes()
    assert resident_bytes() < inside - 2 * _ELEMENTS
    assert faults_of_a_block() > 0
