"""The state of a training run on disk, from which a killed one goes on as if nothing had happened.

A file appears whole or not at all. One that cannot be read, or is of another run, is as good as
none.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch

VERSION = 1


class CheckpointFile:
    """The checkpoint of one phase of a run.

    Attributes:
        refused: Why a file that is there was not taken, or None.
    """

    def __init__(self, folder: Path | None, phase: str, fingerprint: str) -> None:
        """Name the file.

        Args:
            folder: An existing one; None keeps nothing.
            phase: Tells the phases of a run apart.
            fingerprint: Of everything that decides on the run.
        """
        self._path = None if folder is None else folder / f"{phase}.checkpoint"
        self._fingerprint = fingerprint
        self._written_at = time.monotonic()
        self._took_s = 0.0
        self.refused: str | None = None

    def is_due(self, every_s: float) -> bool:
        """Whether it is time for the next, and writing takes little of the time in between."""
        passed_s = time.monotonic() - self._written_at
        return self._path is not None and passed_s >= every_s and passed_s >= 20 * self._took_s

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved last, or None; only tensors and plain types are read."""
        if self._path is None or not self._path.exists():
            return None
        try:
            saved = torch.load(self._path, map_location="cpu", weights_only=True)
            known = saved["version"], saved["fingerprint"]
            state = dict(saved["state"])
        except Exception as error:  # a torn file fails in whatever way unpickling or unzipping does
            self.refused = f"nothing can be read ({type(error).__name__})"
            return None
        if known != (VERSION, self._fingerprint):
            self.refused = "settings, data or software are others"
            return None
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file; a crash at any moment leaves the old one or the new one."""
        if self._path is None:
            return
        began = time.monotonic()
        part = self._path.with_name(self._path.name + ".part")
        content = {"version": VERSION, "fingerprint": self._fingerprint, "state": state}
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._written_at = time.monotonic()
        self._took_s = self._written_at - began


def fingerprint(*facts: Any) -> str:
    """Return a digest of facts, by how they print."""
    return hashlib.sha256(repr((torch.__version__, *facts)).encode()).hexdigest()
