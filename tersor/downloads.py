"""Saves stored bytes to a file: resumed after a cut, verified, and there whole or not at all."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import httpx

from tersor.errors import DigestMismatch, TransportError
from tersor.transport import Transport
from tersor.uploads import Progress

_CUTS_WITHOUT_PROGRESS = 5
_UNSAFE = re.compile(r"[^\w.+@=-]+")


def download(
    transport: Transport,
    path: str,
    target: Path,
    *,
    sha256: str,
    size_bytes: int,
    progress: Progress | None = None,
) -> Path:
    """Save what lies at the URL path as the file `target` and return it.

    The bytes gather in a hidden file beside it, named after their digest, so that a download
    that was cut, even by the end of this process, goes on where it stopped. Only when size and
    SHA-256 are right does the file take its name, in one step.

    Raises:
        DigestMismatch: What arrived is not the file.
        TransportError: The connection was cut again and again without a byte gained.
        ApiError: The service refused.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name[:100]}.{sha256[:16]}.part")
    resumed = part.exists() and part.stat().st_size > 0
    _fetch(transport, path, part, sha256, size_bytes, progress)
    if _digest(part) != sha256:
        part.unlink()
        if not resumed:
            raise DigestMismatch(
                f"{target.name} did not arrive as stored: its SHA-256 is not {sha256}. "
                f"Nothing was kept; try again."
            )
        # what an earlier run left behind was at fault
        return download(
            transport, path, target, sha256=sha256, size_bytes=size_bytes, progress=progress
        )
    part.replace(target)
    return target


def safe_file_name(name: str, fallback: str, suffix: str = "") -> str:
    """Return a name that stays inside its folder, whatever the service called the thing."""
    plain = _UNSAFE.sub("_", name).lstrip(".")[:150] or fallback
    return plain if plain.endswith(suffix) else plain + suffix


def _fetch(
    transport: Transport,
    path: str,
    part: Path,
    sha256: str,
    size_bytes: int,
    progress: Progress | None,
) -> None:
    cuts = 0
    part.touch()
    while True:
        done = part.stat().st_size
        if done > size_bytes:
            part.write_bytes(b"")
            continue
        if done == size_bytes:
            return
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if done:
            headers |= {"Range": f"bytes={done}-", "If-Range": f'"{sha256}"'}
        try:
            _append(transport, path, part, headers, lambda now: _tell(progress, now, size_bytes))
        except httpx.TransportError as error:
            cuts = 0 if part.stat().st_size > done else cuts + 1
            if cuts >= _CUTS_WITHOUT_PROGRESS:
                raise TransportError(
                    f"The download from {transport.url} was cut again and again; run it again "
                    f"to go on from {part.stat().st_size} bytes.",
                    code="connection_lost",
                ) from error
            transport.pause(cuts)
        else:
            if part.stat().st_size < size_bytes:
                part.unlink()
                raise DigestMismatch(
                    f"{path} is shorter than the service said ({size_bytes} bytes)."
                )


def _append(
    transport: Transport,
    path: str,
    part: Path,
    headers: dict[str, str],
    tell: Callable[[int], None],
) -> None:
    with transport.stream(path, headers) as response:
        whole = response.status_code != httpx.codes.PARTIAL_CONTENT
        with part.open("wb" if whole else "ab") as file:
            # as it comes: chunks of a set size would lose, at a cut, what had not filled one
            for chunk in response.iter_raw():
                file.write(chunk)
                tell(file.tell())


def _tell(progress: Progress | None, done: int, size_bytes: int) -> None:
    if progress is not None:
        progress(done, size_bytes)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
