from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from app.storage import LocalBlobStore

WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from app.storage import LocalBlobStore
LocalBlobStore(Path(sys.argv[1])).stage().write(b"half")
os._exit(9)
"""


def age(path: Path) -> None:
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))


def test_only_files_whose_writer_died_are_removed(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)], check=False)
    (abandoned,) = (tmp_path / "staging").iterdir()
    age(abandoned)
    with store.stage() as finished, store.stage() as written:
        written.write(b"a")
        finished.write(b"b")
        finished.finish()
        age(written.path)
        age(finished.path)
        assert store.remove_abandoned(older_than_s=60) == 1
        assert not abandoned.exists()
        store.publish(finished, "sha256/aa/finished")
    assert b"".join(store.read("sha256/aa/finished")) == b"b"
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_file_opened_just_now_is_spared(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "new").touch()  # its writer has not locked it yet
    assert LocalBlobStore(tmp_path).remove_abandoned(older_than_s=60) == 0
