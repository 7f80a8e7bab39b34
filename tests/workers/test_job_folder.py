"""What is laid out for a job that trains: teacher, student, data, and a place for checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.db import Database
from app.models.tables import Model
from app.settings import Settings
from app.storage import LocalBlobStore
from compress.spec import DistillConfig
from tests.workers.rows import add_dataset, add_job, add_model
from workers.checkpoints import checkpoints_folder
from workers.job_folder import InputsGone, fill, find_files, job_folder
from workers.lease import Claim, claim
from workers.order import load_order


@pytest.fixture
def ids(database: Database, store: LocalBlobStore, tmp_path: Path) -> dict[str, str]:
    found = {}
    for name, content in (("teacher.pt", b"t" * 500), ("student.pt", b"s" * 30)):
        (tmp_path / name).write_bytes(content)
        found[name[:7]] = add_model(database, store, tmp_path / name)
    for name in ("train.npz", "test.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
        found[name.partition(".")[0]] = add_dataset(database, store, tmp_path / name, 9)
    return found


def submit(database: Database, ids: dict[str, str], **values: Any) -> Claim:
    config = {"student_model_id": ids["student"], "augment": ["flip"], "epochs": 2}
    add_job(
        database, method="distill", model_id=ids["teacher"], student_model_id=ids["student"],
        spec={"method": "distill", "config": config},
        datasets={"training": ids["train"], "evaluation": ids["test"]}, **values,
    )  # fmt: skip
    with database.write() as session:
        claimed = claim(session, ("cpu",), "test/1/2/3", 30)
    assert claimed is not None
    return claimed


def test_a_distillation_gets_both_models_its_data_and_its_checkpoints(
    database: Database, settings: Settings, store: LocalBlobStore, ids: dict[str, str]
) -> None:
    claimed = submit(database, ids)
    with database.read() as session:
        files = find_files(session, claimed)
    assert files.model_bytes == 530
    with job_folder(settings, claimed) as folder:
        order = fill(folder, claimed, files, store, settings, 2**30)
        contents = {role: (folder / "inputs" / name).read_bytes() for role, name in
                    order.inputs.items()}  # fmt: skip
        assert contents == {
            "model": b"t" * 500, "student": b"s" * 30, "training": b"train.npz",
            "evaluation": b"test.safetensors",
        }  # fmt: skip
        assert order.inputs["evaluation"].endswith(".safetensors")
        assert order.spec.config == DistillConfig(
            student_model_id=ids["student"],
            augment=["flip"],  # type: ignore[arg-type]
            epochs=2,
        )
        assert order.checkpoints == str(checkpoints_folder(settings) / claimed.job_id / "1")
        assert Path(order.checkpoints).is_dir()
        assert load_order(folder) == order
    assert Path(order.checkpoints).is_dir()  # which the attempt's folder is not
    assert not folder.exists()


def test_what_leaves_nothing_for_later_has_no_such_place(
    database: Database, settings: Settings, store: LocalBlobStore, ids: dict[str, str]
) -> None:
    preflight = submit(database, ids, kind="preflight")
    with job_folder(settings, preflight) as folder, database.read() as session:
        order = fill(folder, preflight, find_files(session, preflight), store, settings, 2**30)
    assert order.checkpoints is None
    add_job(database, model_id=ids["teacher"], spec={"method": "ptq", "config": {}})
    with database.write() as session:
        claimed = claim(session, ("cpu",), "test/1/2/3", 30)
    assert claimed is not None
    with job_folder(settings, claimed) as folder, database.read() as session:
        order = fill(folder, claimed, find_files(session, claimed), store, settings, 2**30)
    assert (order.checkpoints, order.inputs) == (None, {"model": "model.pt"})
    assert not checkpoints_folder(settings).exists()


def test_a_student_that_is_gone_is_told(
    database: Database, settings: Settings, ids: dict[str, str]
) -> None:
    claimed = submit(database, ids)
    with database.write() as session:
        session.delete(session.get_one(Model, ids["student"]))
    with pytest.raises(InputsGone), database.read() as session:
        find_files(session, claimed)
