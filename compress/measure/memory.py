"""Peak memory: what a file takes, in a process that has only its runtime.

A measuring process is started once for several files: a fresh interpreter that imports torch and
runs nothing, so that the copies it forks are as good as new ones and cost no import. A process that
has torch and has run nothing yet may fork one instead. A copy warms the file's runtime up with a
model of a few numbers, notes the resident memory, loads the file, runs it, and tells the highest
resident memory in between less what it noted.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Protocol, Self

from compress.measure.memory_server import HEADER, Job, serve
from compress.spec import Format

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from compress.measure.memory_server import serve; serve(int(sys.argv[1]))"
)
LIMIT_S = 120.0
"""Loading and running one file takes longer only where something is broken."""


class NotMeasured(Exception):
    """The file could not be loaded and run in a process of its own; says why."""


class MeasuringProcess(Protocol):
    """A process that runs `memory_server.serve`; a `Popen` is one."""

    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def kill(self) -> None:
        """Have it end, at the latest when its pipes are closed."""

    def wait(self) -> int:
        """Return its status when it has ended."""


class ForkedProcess:
    """A copy of this process that measures; fork it before anything was run or locked down."""

    def __init__(self, confine: Callable[[], object], confine_copy: Callable[[], object]) -> None:
        """Fork.

        Args:
            confine: Called once, in the measuring process.
            confine_copy: Called in each of its copies, before anything untrusted.
        """
        parent = os.getpid()
        orders_read, orders_write = os.pipe()
        answers_read, answers_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(orders_read, 0)
                os.dup2(answers_write, 1)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                confine()
                serve(parent, confine_copy)
            except BaseException:  # nothing may lead back into what was forked
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(orders_read)
        os.close(answers_write)
        self.stdin: IO[bytes] | None = os.fdopen(orders_write, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(answers_read, "rb")

    def kill(self) -> None:
        """Nothing: behind walls it cannot be signalled, and it ends when its orders do."""

    def wait(self) -> int:
        """Return its status when it has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class MemoryProbe:
    """Measures files one after another; leave its `with` block to end the measuring process.

    A process of its own starts with the probe, and imports torch while others work; `wait` for that
    before timing anything.
    """

    def __init__(self, process: MeasuringProcess | None = None) -> None:
        # isolated: neither the working folder nor the environment says what is imported
        self._process: MeasuringProcess = process or subprocess.Popen(
            [sys.executable, "-I", "-c", _START, str(os.getpid()), *map(os.path.abspath, sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # of an order that it did not take
                    pipe.close()
        self._process.wait()

    def wait(self) -> None:
        """Return when the measuring process is idle.

        Raises:
            NotMeasured: It did not start.
        """
        if not self._ready:
            self._answer()
            self._ready = True

    def peak_bytes(
        self, format: Format, threads: int, work: Callable[[], object], limit_s: float = LIMIT_S
    ) -> int:
        """Return the most resident memory that `work` takes at once, in bytes.

        Args:
            format: The runtime to warm up before.
            threads: That torch computes on.
            work: Loads the file, runs it, and returns what must stay alive until the peak is read.
                It is pickled: a function of a module, or a partial of one.
            limit_s: Give up after so many seconds.

        Raises:
            NotMeasured: `work` raised, took too long, or its process was killed.
        """
        self.wait()
        order = pickle.dumps(Job(format, threads, work))
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(HEADER.pack(len(order), limit_s) + order)
            pipe.flush()
        except BrokenPipeError as error:
            raise NotMeasured("The measuring process is gone.") from error
        answer = self._answer()
        if "error" in answer:
            raise NotMeasured(str(answer["error"]))
        return max(0, int(answer["bytes"]))

    def _answer(self) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        line = pipe.readline()
        if not line:
            raise NotMeasured("The measuring process is gone.")
        answer: dict[str, Any] = json.loads(line)
        return answer
