"""Options of the command are the settings that the dataclasses declare."""

from __future__ import annotations

import argparse

import pytest

from compress.errors import InvalidSpec
from compress.options import add_options, read_options
from compress.spec import METHODS, DistillConfig, PtqConfig


def _read(*words: str) -> object:
    parser = argparse.ArgumentParser()
    add_options(parser, PtqConfig)
    return read_options(parser.parse_args(words), PtqConfig)


@pytest.mark.parametrize("method", METHODS)
def test_no_option_means_the_defaults(method: str) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, METHODS[method])
    given = {"student_model_id": "small.pt"} if method == "distill" else {}
    words = ["--student", "models/small.pt"] if given else []
    read = read_options(parser.parse_args(words), METHODS[method])
    assert read == METHODS[method](**given)


def test_each_setting_has_its_option() -> None:
    read = _read(
        "--mode", "weight_only", "--weight-dtype", "int4", "--granularity", "per_group",
        "--group-size", "32", "--percentile", "99.5", "--override", "a.*=bf16",
        "--override", "a.b=int8",
    )  # fmt: skip
    assert read == PtqConfig(
        mode="weight_only", weight_dtype="int4", granularity="per_group", group_size=32,
        percentile=99.5, overrides={"a.*": "bf16", "a.b": "int8"},
    )  # fmt: skip


def test_training_has_its_options() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, DistillConfig)
    words = [
        "--prune", "0.5", "--augment", "flip", "crop", "--steps", "40", "--amp", "off",
        "--feature-layer", "layer3.bn2=layer3.bn1", "--early-stopping", "2",
    ]  # fmt: skip
    assert read_options(parser.parse_args(words), DistillConfig) == DistillConfig(
        prune=0.5, augment=("flip", "crop"), steps=40, amp="off",
        feature_layers={"layer3.bn2": "layer3.bn1"}, early_stopping=2,
    )  # fmt: skip
    with pytest.raises(InvalidSpec, match="Feature layer 'layer3' is not TEACHERS=STUDENTS"):
        read_options(parser.parse_args(["--feature-layer", "layer3"]), DistillConfig)
    with pytest.raises(InvalidSpec, match="Give student_model_id or prune"):
        read_options(parser.parse_args([]), DistillConfig)


def test_contradictions_and_wrong_overrides_are_told() -> None:
    with pytest.raises(InvalidSpec, match="Mode weight_only alone takes int4"):
        _read("--weight-dtype", "int4")
    with pytest.raises(InvalidSpec, match="Override 'fc=int3' is not PATTERN=int8"):
        _read("--override", "fc=int3")
