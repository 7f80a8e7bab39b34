"""A child process that dies with us, writes to a log file, and is restarted when it exits."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LOG_BYTES_KEPT = 20 * 2**20
_STEADY_S = 30.0
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass
class Watched:
    """One service process.

    Attributes:
        name: Shown to the user, and the name of the log file.
        command: Program and arguments.
        environment: The whole environment of the process.
        log_folder: Where `<name>.log` is appended to.
        pass_fds: Descriptors the process inherits.
        before_restart: Called with the number of quick exits in a row before a restart.
        stopped_limit_s: Once SIGSTOP has held the process for so long it is killed: what it was
            in the middle of, a write to the database, holds up the others.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_folder: Path
    pass_fds: tuple[int, ...] = ()
    before_restart: Callable[[int], None] | None = None
    stopped_limit_s: float = math.inf
    quick_exits: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _started: float = 0.0
    _restart_at: float | None = None
    _stopped_at: float | None = None

    @property
    def log_path(self) -> Path:
        """The file that gets the process's output."""
        return self.log_folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process. Call from the main thread: its end would end the process too."""
        _rotate(self.log_path)
        launcher = os.getpid()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.environment),
                pass_fds=self.pass_fds,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which stops in order
                preexec_fn=lambda: _die_with(launcher),
            )
        self._started = time.monotonic()
        self._restart_at = self._stopped_at = None

    def watch(self) -> str | None:
        """Restart the process if it has exited; say once for each exit how it ended."""
        if self._process is None:
            if self._restart_at is not None and time.monotonic() >= self._restart_at:
                if self.before_restart is not None:
                    self.before_restart(self.quick_exits)
                self.start()
            return None
        status = self._process.poll()
        now = time.monotonic()
        if status is not None:
            end = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        elif self._is_stopped_too_long(now):
            end = f"killed, since it had been stopped for {self.stopped_limit_s:.0f} s"
            _kill_session(self._process)
        else:
            return None
        self.quick_exits = 0 if now - self._started > _STEADY_S else self.quick_exits + 1
        backoff_s = _BACKOFF_S[min(self.quick_exits, len(_BACKOFF_S) - 1)]
        self._process = None
        self._restart_at = now + backoff_s
        return end

    def stop(self, grace_s: float) -> None:
        """Ask the process to end, and after `grace_s` kill its whole session."""
        process, self._process, self._restart_at = self._process, None, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            _kill_session(process)

    def last_lines(self, count: int = 8) -> str:
        """Return the end of the log, for an error message."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])

    def _is_stopped_too_long(self, now: float) -> bool:
        assert self._process is not None
        if not _is_stopped(self._process.pid):
            self._stopped_at = None
            return False
        if self._stopped_at is None:
            self._stopped_at = now
        return now - self._stopped_at > self.stopped_limit_s


def _is_stopped(pid: int) -> bool:
    """Return whether a signal stopped the process; one that a debugger holds is in state `t`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it ended in between
        return False
    return stat.rpartition(")")[2].split()[0] == "T"  # the name before it may hold spaces


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended in between
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with(launcher: int) -> None:
    # runs in the new process before exec: even after kill -9 of the launcher no orphan is left
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != launcher:
        os._exit(1)  # the launcher ended before the request took effect


def _rotate(path: Path) -> None:
    if path.exists() and path.stat().st_size > _LOG_BYTES_KEPT:
        path.replace(path.with_suffix(".log.1"))
