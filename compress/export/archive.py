"""Writes a TorchScript file anew without what running it does not need.

What goes is the debug map from operators to source lines (often a third of a small file), padding,
and bytes that code spends uncompressed. Weights stay stored plainly, so that they can be mapped.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

_UNNEEDED = (".debug_pkl", ".data/serialization_id")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def repack(source: Path, target: Path) -> None:
    """Copy the TorchScript file at `source` to `target`, small and byte-equal on every run."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith(_UNNEEDED):
                continue
            # the root is named after the file; a fixed one keeps equal models equal bytes
            path = PurePosixPath("model", *PurePosixPath(entry.filename).parts[1:])
            fresh = zipfile.ZipInfo(str(path), _EPOCH)
            is_code = path.parts[1] == "code"
            fresh.compress_type = zipfile.ZIP_DEFLATED if is_code else zipfile.ZIP_STORED
            with old.open(entry) as reader, new.open(fresh, "w") as writer:
                while chunk := reader.read(1 << 20):
                    writer.write(chunk)


def extra_file_names(path: Path) -> list[str]:
    """Return the names of the extra files that a TorchScript file carries."""
    with zipfile.ZipFile(path) as archive:
        parts = [PurePosixPath(name).parts for name in archive.namelist()]
    return ["/".join(p[2:]) for p in parts if len(p) > 2 and p[1] == "extra"]
