"""Runs the attack, prints the tally, and ends with status 1 if anything was not as it should be."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import select

from app.jobs.tables import FINISHED, JobEvent
from tests.faults.chaos import goods
from tests.faults.chaos.customers import Customer
from tests.faults.chaos.desk import Desk
from tests.faults.chaos.house import House
from tests.faults.chaos.inspection import Inspection
from tests.faults.chaos.ledger import Ledger, say
from tests.faults.chaos.lookout import Lookout
from tests.faults.chaos.mischief import Mischief
from tests.faults.chaos.processes import adopt_orphans


def main() -> int:
    """Attack a service of our own; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of what is done and asked")
    parser.add_argument("--customers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=4.0, help="mean seconds between faults")
    parser.add_argument("--database", help="URL of an empty PostgreSQL database; else SQLite")
    parser.add_argument("--keep", action="store_true", help="keep the folder in any case")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tersor-chaos-"))
    ledger = Ledger()
    began = time.monotonic()
    attack(folder, ledger, options)
    print_tally(ledger, time.monotonic() - began)
    if ledger.violations:
        say(f"{len(ledger.violations)} violations with --seed {options.seed}; see {folder}")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    say(f"no violation with --seed {options.seed}")
    return 0


def attack(folder: Path, ledger: Ledger, options: argparse.Namespace) -> None:
    adopt_orphans()
    house = House(folder, options.database)
    enough = threading.Event()
    try:
        house.start()
        with house.client() as client:
            desk = Desk(client, ledger, random.Random(options.seed))
            bought = goods.bring(desk)
            customers = [
                Customer(house.client(), ledger, bought, f"{options.seed}-{number}", enough)
                for number in range(options.customers)
            ]
            for customer in customers:
                customer.start()
            Lookout(house, ledger, enough).start()
            mischief = Mischief(house, ledger, options.seed, options.pause)
            deadline = time.monotonic() + options.minutes * 60
            while time.monotonic() < deadline:
                mischief.go_on()
                house.watch()
                time.sleep(0.05)
            mischief.make_good()
            enough.set()
            while any(customer.is_alive() for customer in customers):
                house.watch()
                time.sleep(0.05)
            inspection = Inspection(house, ledger, desk)
            inspection.wait_until_quiet()
            inspection.look()
            measure_recovery(house, ledger)
    finally:
        enough.set()
        left = house.stop()
    for process in left:
        ledger.complain(f"a process is left over: {process}")


def measure_recovery(house: House, ledger: Ledger) -> None:
    """Note how long after each fault the attempts that it ended went on or were over."""
    with house.database.read() as session:
        rows = session.execute(
            select(JobEvent.job_id, JobEvent.created_at, JobEvent.data)
            .where(JobEvent.type == "status")
            .order_by(JobEvent.id)
        ).all()
    starts: dict[str, list[float]] = {}
    for job_id, created_at, data in rows:
        if data["status"] == "running" or data["status"] in FINISHED:
            starts.setdefault(job_id, []).append(created_at.timestamp())
    for fault in ledger.faults:
        for victim in fault.victims:
            job_id, _, fence = victim.rpartition("-")
            later = starts.get(job_id, [])[int(fence) :]
            if later:
                ledger.lasted(f"jobs hit by {fault.kind} went on", later[0] - fault.at)


def print_tally(ledger: Ledger, seconds: float) -> None:
    """Print what was done, what came of it, and how long it took."""
    kinds = Counter(fault.kind for fault in ledger.faults)
    hits = Counter[str]()
    for fault in ledger.faults:
        hits[fault.kind] += len(fault.victims)
    say(f"\n{seconds / 60:.1f} minutes, {len(ledger.orders)} jobs wanted")
    say(f"\n{'faults':44}{'number':>8}{'attempts hit':>14}")
    for kind, number in sorted(kinds.items()):
        say(f"{kind:44}{number:8}{hits[kind]:14}")
    say(f"{'all':44}{sum(kinds.values()):8}{sum(hits.values()):14}")
    for title, is_here in (("jobs", True), ("besides", False)):
        say(f"\n{title:44}{'number':>8}")
        for what, number in sorted(ledger.counts.items()):
            if what.startswith("job ") is is_here:
                say(f"{what.removeprefix('job '):44}{number:8}")
    say(f"\n{'longest time, s':44}")
    for what, longest_s in sorted(ledger.longest_s.items()):
        say(f"{what:44}{longest_s:8.1f}")
    say(f"\nviolations: {len(ledger.violations)}")
    for violation in ledger.violations:
        say(f"- {violation}")


if __name__ == "__main__":
    sys.exit(main())
