"""What a training leaves for the next attempt at its job, should this one be lost.

checkpoints/<job>/<fence>/   written by that attempt's process alone

An attempt moves the files of the one before into a folder of its own, so that a process which was
given up, and writes on, cannot tear them.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from app.settings import Settings
from workers.lease import Claim

_UNFINISHED = ".part"


def checkpoints_folder(settings: Settings) -> Path:
    """Return the folder of all jobs' checkpoints on this host."""
    return settings.data_dir.resolve() / "checkpoints"


def take_over(settings: Settings, claim: Claim) -> Path:
    """Return the attempt's folder, with what the attempts before it have left.

    Raises:
        OSError: There is no room.
    """
    job_folder = checkpoints_folder(settings) / claim.job_id
    own = job_folder / str(claim.fence)
    own.mkdir(parents=True, mode=0o700, exist_ok=True)
    fences = sorted(int(path.name) for path in job_folder.iterdir() if path.name.isdecimal())
    for fence in fences:
        if fence < claim.fence:
            _move_files(job_folder / str(fence), own)
    return own


def remove_checkpoints(settings: Settings, job_id: str) -> None:
    """Remove what a job's attempts have left; there may be nothing."""
    shutil.rmtree(checkpoints_folder(settings) / job_id, ignore_errors=True)


def _move_files(source: Path, target: Path) -> None:
    # a program that is not trusted wrote there: only plain files are of use, and links are not
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and not entry.name.endswith(_UNFINISHED):
                with suppress(FileNotFoundError):  # that process may still be at work
                    (source / entry.name).replace(target / entry.name)
    shutil.rmtree(source, ignore_errors=True)
