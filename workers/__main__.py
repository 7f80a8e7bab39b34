"""`python -m workers --queues cpu --slots 1`: run a worker."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from app.logs import configure_logging
from app.settings import get_settings
from app.tracing import start_tracing
from workers.worker import Worker


def main(arguments: Sequence[str]) -> int:
    """Run a worker until it is told to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument(
        "--queues", default="cpu", help="cpu, gpu, inspect, or several with commas (default: cpu)"
    )
    parser.add_argument("--slots", type=int, default=1, help="jobs at a time (default: 1)")
    options = parser.parse_args(arguments)
    queues = options.queues.split(",")
    if not set(queues) <= {"cpu", "gpu", "inspect"} or options.slots < 1:
        parser.error("queues are cpu, gpu and inspect, and there is at least one slot")
    os.umask(0o077)  # what jobs and their folders hold is nobody else's
    settings = get_settings()
    configure_logging(settings.log_level, settings.log_format)
    start_tracing("tersor-worker")
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)  # our own lines name the job
    return Worker(settings, queues, options.slots).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
