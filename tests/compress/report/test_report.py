"""The page as a browser would read it: its texts, its safety, its size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from compress.report import write_report
from compress.report.formats import bytes_text, drop_text, milliseconds, shorten, significant
from compress.report.write import render
from compress.result import (
    ArtifactReport,
    Baseline,
    Environment,
    Fidelity,
    Latency,
    Layer,
    Quality,
    Ratio,
    Result,
    Throughput,
    Undelivered,
)

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>\" onload='x' $\\frac{ {{ 7*7 }} &amp; \x1b[31m\ud800"


class Page(HTMLParser):
    """Tags, attributes and visible texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._hidden = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if data.strip() and not self._hidden:
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def latency(p50: float) -> Latency:
    return Latency(p50=p50, p90=1.1 * p50, p99=1.3 * p50, mean=p50, runs=77)


def rates(*values: float) -> list[Throughput]:
    return [
        Throughput(batch_size=b, samples_per_s=v) for b, v in zip((1, 8, 32), values, strict=False)
    ]


def artifact(name: str = "model.int8.onnx", **fields: Any) -> ArtifactReport:
    kept: dict[str, Any] = {
        "name": name, "format": "onnx", "precision": "int8", "size_bytes": 11_800_000,
        "sha256": "", "compression_ratio": 3.97, "verdict": "faster",
        "speedup": Ratio(value=5.77, ci95=(5.68, 5.86)), "latency_ms": latency(5.22),
        "throughput_per_s": 191.6, "throughput": rates(191.6, 250, 270),
        "peak_memory_bytes": 24_300_000,
        "quality": Quality(metric="top1", value=0.9105, samples=2000, drop=0.0015),
        "fidelity": Fidelity(sqnr_db=33.1, cosine=0.999, top1_agreement=0.991),
    }  # fmt: skip
    return ArtifactReport(**(kept | fields))


def result(**fields: Any) -> Result:
    kept: dict[str, Any] = {
        "baseline": Baseline(
            size_bytes=46_900_000, parameters=11_689_512, latency_ms=latency(30.1),
            throughput_per_s=33.2, throughput=rates(33.2, 41, 44), peak_memory_bytes=67_700_000,
            quality=Quality(metric="top1", value=0.912, samples=2000),
        ),
        "artifacts": [artifact()],
        "recommended": "model.int8.onnx",
        "max_accuracy_drop": 0.01,
        "layers": [layer(0), layer(1, precision="fp32", reason="override 'fc' keeps it fp32")],
        "environment": Environment(
            cpu="Some CPU", isa=["avx2"], threads=2, torch="2.13.0", device="cpu"
        ),
        "provenance": {"model_sha256": "c0ffee", "dataset_sha256": ["beef"], "seed": 0},
    }  # fmt: skip
    return Result(**(kept | fields))


def layer(index: int, name: str = "block.{}.conv", **fields: Any) -> Layer:
    kept: dict[str, Any] = {"name": name.format(index), "type": "Conv2d", "precision": "int8",
                            "size_bytes": (147_456, 36_864),
                            "sqnr_db": 30.0 + index % 9}  # fmt: skip
    return Layer(**(kept | fields))


def test_the_headline_tells_every_figure(tmp_path: Path) -> None:
    path = write_report(tmp_path, result())
    assert path == tmp_path / "report.html"
    assert list(tmp_path.iterdir()) == [path]
    text = Page(path.read_text(encoding="utf-8")).text
    for told in (
        "5.77× faster, 3.97× smaller", "46.9 MB", "11.8 MB", "30.1 ms", "5.22 ms", "p90 5.74 ms",
        "p99 6.79 ms", "5.68 to 5.86", "91.05 %", "0.15 points lower", "33.1 dB", "99.10 % agree",
        "67.7 MB", "24.3 MB", "192/s", "270/s", "Recommended:", "block.1.conv",
        "override 'fc' keeps it fp32", "Some CPU", "c0ffee", "2 threads", "2000 samples",
    ):  # fmt: skip
        assert told in text, told


def test_names_from_models_stay_text() -> None:
    """In tables, in plots, in reasons and in whatever a mixed plan holds."""
    hostile = result(
        layers=[layer(0, name=HOSTILE.replace("{", "{{").replace("}", "}}"), reason=HOSTILE)],
        undelivered=[Undelivered(format="pt2", code="export_failed", reason=HOSTILE)],
        lift={
            "islands": [{"name": HOSTILE, "reason": HOSTILE, "parameters": 3}],
            "guards": [HOSTILE], "dynamic_dims": {HOSTILE: [0]}, "methods_dropped": [HOSTILE],
            "state": [HOSTILE],
        },
        mixed={"plan": {HOSTILE: "int8"}, "trials": [{HOSTILE: HOSTILE}]},
        training={HOSTILE: HOSTILE},
    )  # fmt: skip
    text = render(hostile)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("<script>alert(1)</script>") >= 9
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in text
    text.encode()  # a lone surrogate would not be writable


@pytest.mark.parametrize("count", [2, 300])
def test_it_asks_for_nothing_and_forbids_itself_to(count: int) -> None:
    text = render(result(layers=[layer(index) for index in range(count)]))
    page = Page(text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object"})
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not [part for part in text.split("url(")[1:] if not part.startswith("#")]
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_plots_take_their_colours_from_the_page_and_their_ids_are_their_own() -> None:
    page = Page(render(result(layers=[layer(index) for index in range(60)])))
    drawings = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert drawings == [
        "Latency of each file", "Speed and quality", "Size and quality",
        "Throughput by batch size", "Bytes of each layer",
        "Signal to quantization noise of each layer", "Layers of lowest SQNR", "Largest layers",
    ]  # fmt: skip
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids)) > 0
    styles = " ".join(str(attributes.get("style")) for _, attributes in page.tags)
    assert "var(--series-0)" in styles
    assert "#0a0" not in styles


def test_two_thousand_layers_stay_readable() -> None:
    name = "encoder.layers.{}.attention.output.projection.dense"
    many = [layer(index, name=name, reason="LayerNorm holds few weights") for index in range(2000)]
    text = render(result(layers=many))
    assert len(text.encode()) < 1_500_000
    page = Page(text)
    assert "details" in {tag for tag, _ in page.tags}
    assert name.format(1999) in page.texts
    longer = render(result(layers=many * 2))
    assert "the manifest lists 1000 more" in longer


def test_nothing_recommended_says_why_for_each() -> None:
    slow = artifact("slow", verdict="not_faster", speedup=Ratio(value=0.8, ci95=(0.7, 0.9)))
    wrong = artifact("wrong", quality=Quality(metric="top1", value=0.8, samples=9, drop=0.112))
    large = artifact("large", verdict="not_faster", compression_ratio=0.9,
                     speedup=Ratio(value=1.0, ci95=(0.9, 1.1)))  # fmt: skip
    text = Page(render(result(artifacts=[slow, wrong, large], recommended=None))).text
    assert "No file is better than the original" in text
    assert "slow It is slower than the original." in text
    assert "wrong Its quality leaves the accuracy budget: 11.20 points lower." in text
    assert "large It is neither faster nor smaller than the original." in text


def test_missing_figures_leave_gaps_not_errors() -> None:
    bare = artifact(
        latency_ms=None, speedup=None, throughput_per_s=None, throughput=[], quality=None,
        peak_memory_bytes=None, verdict="not_measured",
        fidelity=Fidelity(sqnr_db=200.0, cosine=1.0),
    )  # fmt: skip
    empty = result(
        baseline=Baseline(size_bytes=5, parameters=0), artifacts=[bare], layers=[], recommended=None
    )
    text = Page(render(empty)).text
    assert "not measured" in text
    assert "exact" in text
    assert "Layers" not in text
    render(replace(empty, artifacts=[]))


def test_mixed_plans_and_training_are_tables() -> None:
    mixed = {"bound": {"max_accuracy_drop": 0.01}, "plan": {"conv1": "fp16"}}
    text = Page(render(result(mixed=mixed, training={"epochs": 3}))).text
    for told in ("max_accuracy_drop 0.01", "conv1 fp16", "epochs 3"):
        assert told in text, told


def test_it_draws_without_a_home_a_display_or_a_place_for_caches(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.compress.report.test_report import result\n"
        "from compress.report import write_report\n"
        "write_report(Path(sys.argv[1]), result())\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *sys.path],
        env={"HOME": "/nonexistent", "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
        check=True,
        timeout=120,
    )
    assert (tmp_path / "report.html").stat().st_size > 20_000


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (bytes_text(46_892_875), "46.9 MB"),
        (bytes_text(999), "999 B"),
        (bytes_text(None), "–"),
        (milliseconds(0.0581), "58.1 µs"),
        (milliseconds(1234.5), "1234 ms"),
        (significant(0.0000123456), "1.23e-05"),
        (significant(0.000123456), "0.000123"),
        (drop_text("top1", 0.002, 0.9), "0.20 points lower"),
        (drop_text("top1", -0.002, 0.9), "0.20 points higher"),
        (drop_text("mse", 0.05, 0.5), "10.00 % higher"),
        (drop_text("mse", 0.0, 0.0), "no change"),
        (shorten("abcdefghij", 5), "ab…ij"),
    ],
)
def test_figures_read_as_people_write_them(made: str, told: str) -> None:
    assert made == told
