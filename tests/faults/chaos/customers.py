"""Customers that want jobs done all the while, one after another, and look at what they get."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from typing import Any

import httpx

from tests.faults.chaos.desk import Desk, GaveUp
from tests.faults.chaos.goods import OUTCOMES, Goods, images, upload
from tests.faults.chaos.ledger import Ledger, Order

_SHARES = {
    "ptq": 6, "convert": 2, "distill": 4, "own data": 3, "time out": 1, "nothing to do": 2,
    "cancel": 4, "preflight": 2,
}  # fmt: skip
_LONGEST_JOB_S = 240.0


class Customer(threading.Thread):
    """Wants one job after another until told that it is enough, and waits for the last."""

    def __init__(
        self, client: httpx.Client, ledger: Ledger, goods: Goods, seed: str, enough: threading.Event
    ) -> None:
        super().__init__(name=f"customer-{seed}", daemon=True)
        self._ledger = ledger
        self._goods = goods
        self._enough = enough
        self._random = random.Random(seed)
        self._desk = Desk(client, ledger, self._random)

    def run(self) -> None:
        """Shop."""
        errands, shares = list(_SHARES), list(_SHARES.values())
        while not self._enough.is_set():
            (errand,) = self._random.choices(errands, shares)
            try:
                if errand == "preflight":
                    self._ask_before()
                else:
                    self._order(errand)
            except GaveUp as error:
                self._ledger.complain(f"a customer gave up: {error}")
            except Exception as error:
                self._ledger.complain(f"customer: {error!r}")
                raise
            self._enough.wait(self._random.random())

    def _order(self, errand: str) -> None:
        order = self._ledger.order(errand, set(OUTCOMES[errand]))
        number = str(order.number)
        body = self._goods.body(errand)
        body["labels"] = {"order": number}
        dataset_id = None
        if errand == "own data":
            dataset_id = self._bring_data(order)
            body["calibration"]["dataset_id"] = dataset_id
        order.maybe = True
        if self._random.random() < 0.15:
            order.job_id = self._desk.submit_once(body)
        else:
            order.job_id = self._desk.submit(body, f"order-{number}")
        order.maybe = order.job_id is None
        if order.maybe:
            return  # found by its label in the end, if it is there
        if errand == "cancel":
            time.sleep(self._random.random() * 4)
            self._cancel(order)
        order.ended = self._wait(f"/v1/jobs/{order.job_id}", "job")
        if order.ended["status"] == "succeeded":
            check_artifacts(self._desk, self._ledger, order.ended)
        if dataset_id is not None:
            self._desk.ask("DELETE", f"/v1/datasets/{dataset_id}", {204, 404})
        if self._random.random() < 0.15:
            self._desk.ask("DELETE", f"/v1/jobs/{order.job_id}", {204, 404})
            order.deleted = True

    def _bring_data(self, order: Order) -> str:
        content = images(1000 + order.number, 64)
        for _ in range(self._random.choice((0, 1))):
            self._desk.hang_up(
                "/v1/datasets",
                b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nchaos\r\n'
                b'--x\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
                + content + b"\r\n--x--\r\n",
                {"Content-Type": "multipart/form-data; boundary=x",
                 "Idempotency-Key": f"data-{order.number}"},
            )  # fmt: skip
        return upload(self._desk, "datasets", content, key=f"data-{order.number}")

    def _cancel(self, order: Order) -> None:
        answer = self._desk.ask("POST", f"/v1/jobs/{order.job_id}/cancel", {202, 409})
        if answer.status_code == 202:
            order.outcomes = {"cancelled"}
        elif answer.extensions["tries"] == 1:
            order.outcomes = {"succeeded"}  # it had ended, and no earlier request was its end

    def _ask_before(self) -> None:
        body = self._goods.body("ptq")
        answer = self._desk.ask("POST", "/v1/preflight", {200, 202}, json=body)
        view = self._wait(f"/v1/preflight/{answer.json()['id']}", "preflight")
        if view["status"] != "succeeded":
            self._ledger.complain(f"preflight {view['id']} ended {view['status']}: {view['error']}")
        self._ledger.count("preflights")

    def _wait(self, url: str, kind: str) -> dict[str, Any]:
        deadline = time.monotonic() + _LONGEST_JOB_S
        while True:
            headers = {"Prefer": "wait=5"} if kind == "job" else {}
            view: dict[str, Any] = self._desk.ask("GET", url, {200}, headers=headers).json()
            if view["finished"]:
                return view
            if time.monotonic() > deadline:
                raise GaveUp(f"{url} is still {view['status']} after {_LONGEST_JOB_S:.0f} s")
            if kind != "job":
                time.sleep(0.3)


def check_artifacts(desk: Desk, ledger: Ledger, job: dict[str, Any]) -> None:
    """Download all files of a succeeded job, and compare them with what is said of them."""
    told = {each["id"]: each for each in job["result"]["artifacts"]}
    listed = desk.ask("GET", job["urls"]["artifacts"], {200}).json()["data"]
    names = [each["name"] for each in listed]
    if len(set(names)) != len(names):
        ledger.complain(f"{job['id']}: doubled artifacts {sorted(names)}")
    if {each["id"] for each in listed if each["kind"] == "model"} != set(told):
        ledger.complain(f"{job['id']}: the list of artifacts and the result differ")
    for artifact in listed:
        content = desk.ask("GET", f"/v1/artifacts/{artifact['id']}/content", {200}).content
        facts = (len(content), hashlib.sha256(content).hexdigest())
        for place in (artifact, told.get(artifact["id"], artifact)):
            if facts != (place["size_bytes"], place["sha256"]):
                ledger.complain(f"{job['id']}: {artifact['name']} is not what its row says")
        ledger.count("files downloaded and compared")
