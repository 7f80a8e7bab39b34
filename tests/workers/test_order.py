from __future__ import annotations

from pathlib import Path

from compress.spec import ConvertConfig, EngineSpec, PtqConfig
from workers.order import Order, load_order, spec_from_request
from workers.sandbox import Limits

REQUEST = {
    "method": "ptq",
    "model_id": "mdl_x",
    "calibration": {"dataset_id": "dst_x", "samples": 64, "batch_size": 8},
    "evaluation": {"dataset_id": "dst_y", "metric": "top5"},
    "config": {"mode": "static", "observer": "minmax", "overrides": {"features.0.*": "fp32"}},
    "formats": ["torchscript"],
    "backend": "x86",
    "device": "auto",
    "max_accuracy_drop": 0.02,
    "seed": 7,
    "priority": 3,
    "timeout_s": 60,
    "labels": {"run": "42"},
}


def test_a_stored_request_becomes_the_engines_spec() -> None:
    assert spec_from_request(REQUEST, threads=2) == EngineSpec(
        method="ptq",
        config=PtqConfig(observer="minmax", overrides={"features.0.*": "fp32"}),
        metric="top5",
        calibration_samples=64,
        calibration_batch_size=8,
        seed=7,
        threads=2,
        max_accuracy_drop=0.02,
    )


def test_files_for_a_gpu_are_made_on_one() -> None:
    request = {"method": "convert", "config": {}, "backend": "cuda", "device": "auto"}
    assert spec_from_request(request, threads=1).device == "cuda"


def test_a_request_without_data_keeps_the_engines_defaults() -> None:
    request = {"method": "convert", "config": {"precision": "fp16"}, "calibration": None}
    spec = spec_from_request(request, threads=1)
    assert spec == EngineSpec(method="convert", config=ConvertConfig(precision="fp16"))


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    order = Order(
        kind="job",
        spec=spec_from_request(REQUEST, threads=2),
        inputs={"model": "model.pt", "calibration": "calibration.npz"},
        model_inputs=({"name": "x", "dtype": "float32", "shape": ["batch", 3]},),
        limits=Limits(memory_bytes=1, cpu_s=2, file_bytes=3),
        nice=5,
        checkpoints="/data/checkpoints/job_x/1",
    )
    order.save(tmp_path)
    assert load_order(tmp_path) == order
