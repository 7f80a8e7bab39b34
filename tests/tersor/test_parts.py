"""The processes of `tersor up`, before they are started."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tersor.parts import service_processes


def test_a_log_that_keeps_the_broker_down_is_set_aside_however_often_it_ended_before(
    tmp_path: Path,
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TERSOR_")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker = service_processes(tmp_path, kept, listener, "127.0.0.1", 1)[0]
    assert broker.name == "broker"
    assert broker.before_restart is not None
    log = tmp_path / "broker" / "appendonlydir"
    there = []
    for quick_exits in range(8):
        log.mkdir(exist_ok=True)
        (log / "of").write_text(str(quick_exits))
        broker.before_restart(quick_exits)
        there.append(log.exists())
    assert there == [True, True, True, False, True, True, False, True]
    assert (tmp_path / "broker" / "appendonlydir.bad" / "of").read_text() == "6", "only the last"
