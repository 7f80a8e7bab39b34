"""Processes die, stop and hang; every job still ends once, and nothing is left over."""

from __future__ import annotations

import os
import signal
import time

from tests.faults.broker import wait_until
from tests.faults.conftest import Farm
from tests.workers.rows import statuses_of
from workers.identity import is_known_dead


def test_a_job_is_run_again_after_its_process_and_after_the_zygote_were_killed(farm: Farm) -> None:
    farm.start_worker()
    job_id = farm.submit("slow")
    os.kill(farm.wait_running(job_id), signal.SIGKILL)
    wait_until(lambda: farm.job(job_id).attempt == 2, 10, "the second attempt")
    child = farm.wait_running(job_id)
    os.kill(farm.zygotes()[0], signal.SIGKILL)
    wait_until(lambda: child not in farm.children(), 2, "the child dies with the zygote")
    farm.wait_for(job_id, "succeeded")
    farm.assert_ended_once(job_id, "succeeded", attempts=3)
    assert statuses_of(farm.database, job_id) == [
        *["running", "queued"] * 2,
        "running",
        "succeeded",
    ]
    assert farm.workers[0].poll() is None, "the worker itself lived on"
    farm.assert_nothing_left()


def test_a_killed_workers_job_goes_on_at_once_elsewhere(farm: Farm) -> None:
    worker = farm.start_worker(lease_s=600)
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    owner = farm.job(job_id).owner
    assert not is_known_dead(owner)
    farm.stop_worker(worker, signal.SIGKILL)
    wait_until(lambda: not farm.children() and not farm.zygotes(), 2, "its processes die with it")
    assert is_known_dead(owner)
    farm.start_worker(lease_s=600)
    farm.wait_for(job_id, "succeeded", timeout_s=60)  # long before the lease runs out
    farm.assert_ended_once(job_id, "succeeded", attempts=2)
    farm.assert_nothing_left()


def test_a_worker_that_wakes_after_its_lease_changes_nothing(farm: Farm) -> None:
    sleeper = farm.start_worker(lease_s=3, heartbeat_s=0.5)
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    farm.freeze(sleeper)
    farm.start_worker(lease_s=3, heartbeat_s=0.5)
    wait_until(lambda: farm.job(job_id).fence == 2, 30, "the other takes over")
    os.kill(sleeper, signal.SIGCONT)
    farm.wait_for(job_id, "succeeded")
    time.sleep(1)
    farm.assert_ended_once(job_id, "succeeded", attempts=2)
    farm.assert_nothing_left()


def test_a_model_that_crashes_its_process_harms_only_its_own_job(farm: Farm) -> None:
    farm.start_worker()
    poison = farm.submit("poison")
    good = farm.submit("preflight")
    farm.wait_for(good, "succeeded")
    job = farm.wait_for(poison, "failed")
    assert job.error is not None
    assert job.error["code"] == "model_crashed"
    assert "SIGSEGV" in job.error["message"]
    assert statuses_of(farm.database, poison).count("running") == 3
    farm.assert_ended_once(poison, "failed", attempts=3)
    farm.assert_ended_once(good, "succeeded", attempts=1)
    farm.assert_nothing_left()


def test_a_stopped_worker_gives_its_job_back_and_is_gone_in_five_seconds(farm: Farm) -> None:
    worker = farm.start_worker()
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    assert farm.stop_worker(worker) < 5
    assert farm.workers[0].returncode == 0
    job = farm.job(job_id)
    assert (job.status, job.attempt) == ("queued", 0)
    farm.start_worker()
    farm.wait_for(job_id, "succeeded")
    farm.assert_ended_once(job_id, "succeeded", attempts=1)
    farm.assert_nothing_left()


def test_a_worker_stops_in_five_seconds_while_the_broker_is_down(farm: Farm) -> None:
    worker = farm.start_worker()
    farm.broker.kill()
    time.sleep(1)
    assert farm.stop_worker(worker) < 5
    farm.broker.start()
    farm.assert_nothing_left()


def test_jobs_outlive_the_broker_and_the_loss_of_its_data(farm: Farm) -> None:
    farm.start_worker()
    running = farm.submit("slow")
    farm.wait_running(running)
    waiting = farm.submit("preflight")
    farm.broker.kill()
    farm.broker.start()  # with its data
    also_waiting = farm.submit("preflight")
    farm.broker.kill()
    farm.broker.wipe()
    unsent = farm.submit("preflight")  # its message meets no broker
    farm.wait_for(running, "succeeded")
    farm.broker.start()
    late = farm.submit("preflight", message=False)  # as if its message had got lost
    jobs = (running, waiting, also_waiting, unsent, late)
    for job_id in jobs:
        farm.wait_for(job_id, "succeeded")
        farm.assert_ended_once(job_id, "succeeded", attempts=1)
    farm.assert_nothing_left()


def test_ten_messages_for_a_job_run_it_once(farm: Farm) -> None:
    job_id = farm.submit("preflight", message=False)
    for _ in range(10):
        farm.publisher.send(job_id, "cpu")
    farm.start_worker(slots=2)
    farm.start_worker(slots=2)
    farm.wait_for(job_id, "succeeded")
    other = farm.submit("preflight")  # behind them in the queue
    farm.wait_for(other, "succeeded")
    assert statuses_of(farm.database, job_id) == ["running", "succeeded"]
    farm.assert_ended_once(job_id, "succeeded", attempts=1)
    farm.assert_nothing_left()


def test_on_postgresql_two_workers_share_jobs_and_take_over_from_each_other(
    postgres_farm: Farm,
) -> None:
    farm = postgres_farm
    for _ in range(2):
        farm.start_worker(lease_s=600)
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    owner = str(farm.job(job_id).owner)
    farm.stop_worker(int(owner.split("/")[-2]), signal.SIGKILL)
    jobs = [farm.submit("preflight") for _ in range(5)]
    for each in (job_id, *jobs):
        farm.wait_for(each, "succeeded")
    farm.assert_ended_once(job_id, "succeeded", attempts=2)
    for each in jobs:
        farm.assert_ended_once(each, "succeeded", attempts=1)
    farm.assert_nothing_left()
