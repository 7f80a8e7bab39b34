"""A thousand damaged files against the scan and a real worker.

`python -m tests.corpus.mutations [COUNT] [SEED]` scans each as the API does, gives those that pass,
and some that do not, to a worker, and prints a tally. Anything but a refusal with a code, and a job
that ends, is a failure.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from app.datasets.scan import scan_dataset
from app.errors import Unprocessable
from app.models.scan import scan_model
from tests.app import samples
from tests.corpus.mutate import mutate
from tests.faults.broker import Broker
from tests.faults.conftest import Farm
from tests.faults.test_attacks import ended, submit

LIMIT_BYTES = 2**26
PREFLIGHT = {"kind": "preflight", "timeout_s": 30}


@dataclass(frozen=True)
class Mutation:
    """A damaged file, and what it was made from."""

    kind: str
    number: int
    content: bytes

    @property
    def is_model(self) -> bool:
        return self.kind.startswith("model")


def mutations(count: int, seed: int = 0) -> Iterator[Mutation]:
    """Damage real files, in turn."""
    sources = {
        "model, scripted": samples.scripted_cnn(),
        "model, traced": samples.traced_cnn(),
        "model, structured": samples.structured(),
        "npz": samples.npz(input=samples.images(), label=samples.labels()),
        "safetensors": samples.safetensors(input=samples.images(), label=samples.labels()),
    }
    for number in range(count):
        kind = list(sources)[number % len(sources)]
        yield Mutation(kind, number, mutate(sources[kind], Random(seed * 1_000_000 + number)))


def scan(mutation: Mutation, path: Path) -> str:
    """Return `passed`, or the code of the refusal."""
    path.write_bytes(mutation.content)
    try:
        if mutation.is_model:
            scan_model(path)
        else:
            scan_dataset(path, LIMIT_BYTES)
    except Unprocessable as refused:
        return refused.code
    return "passed"


def main(count: int, seed: int) -> int:
    """Print the tally; return how many files did what none should."""
    scanned: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    failures = 0
    slowest_s = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        marker = folder / "marker"
        marker.write_bytes(b"secret")
        broker = Broker(folder)
        broker.start()
        farm = Farm(folder, broker, {}, f"sqlite:///{folder}/data/tersor.db")
        try:
            farm.start_worker(memory_bytes=2**29)
            for mutation in mutations(count, seed):
                path = folder / f"{mutation.number}.pt"
                began = time.thread_time()
                try:
                    code = scan(mutation, path)
                except Exception as error:
                    failures += 1
                    sys.stdout.write(f"{mutation.kind} {mutation.number}: {error!r}\n")
                    continue
                slowest_s = max(slowest_s, time.thread_time() - began)
                scanned[code] += 1
                if mutation.is_model and (code == "passed" or mutation.number % 25 == 0):
                    job = ended(farm, submit(farm, path, (1, 8, 8), **PREFLIGHT), 120)
                    told = (job.error or {}).get("code", "succeeded")
                    ends["let in" if code == "passed" else "refused, run all the same", told] += 1
                    if told in ("internal_error", "worker_lost"):
                        failures += 1
                        sys.stdout.write(f"{mutation.kind} {mutation.number}: {told}\n")
                path.unlink()
            failures += marker.read_bytes() != b"secret"
            farm.assert_nothing_left()
        finally:
            farm.close()
            broker.kill()
    sys.stdout.write(f"{count} files, slowest scan {slowest_s * 1000:.0f} ms of processor time\n")
    for code, times in scanned.most_common():
        sys.stdout.write(f"  {times:5} {code}\n")
    for (why, code), times in sorted(ends.items()):
        sys.stdout.write(f"  {times:5} {why}: {code}\n")
    sys.stdout.write(f"failures: {failures}\n")
    return failures


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    sys.exit(main(*(given + [1000, 0][len(given) :])) != 0)
