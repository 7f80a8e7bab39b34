from __future__ import annotations

import os
import subprocess
import sys

from workers.identity import is_known_dead, own_name


def test_we_are_alive_and_our_name_fits_its_column() -> None:
    assert not is_known_dead(own_name())
    assert len(own_name()) <= 200


def test_an_ended_process_is_known_dead_and_a_zombie_too() -> None:
    command = [sys.executable, "-c", "from workers.identity import own_name; print(own_name())"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.read().strip()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
    assert is_known_dead(name)
    process.wait()
    assert is_known_dead(name)


def test_a_reused_pid_is_another_process() -> None:
    before, _, start_time = own_name().rpartition("/")
    assert is_known_dead(f"{before}/{int(start_time) - 1}")


def test_of_another_host_or_namespace_we_know_nothing() -> None:
    boot_id, namespace, _pid, _start = own_name().split("/")
    for name in (f"other/{namespace}/1/1", f"{boot_id}/1/1/1", "", None, "a/b", "x"):
        assert not is_known_dead(name)
