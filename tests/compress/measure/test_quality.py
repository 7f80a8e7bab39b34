from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor

from compress.errors import BadEvaluationData, BadOutput, InvalidSpec, LabelMismatch
from compress.measure.environment import int8_saturates, parse_cpu_info, read_environment
from compress.measure.fidelity import SQNR_LIMIT_DB, FidelityMeter, NoiseMeter
from compress.measure.outputs import output_tensors, primary_output, same_structure
from compress.measure.quality import QualityMeter, pick_metric, within_budget
from compress.result import Quality
from compress.spec import Metric

LOGITS = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
OTHER = LOGITS + 0.8 * torch.randn(40, 7, generator=torch.Generator().manual_seed(1))
LABEL = torch.randint(0, 7, (40,), generator=torch.Generator().manual_seed(2))


def measure(metric: Metric, output: Tensor, label: Tensor | None, split: int = 13) -> Quality:
    meter = QualityMeter(metric)
    for start in range(0, 40, split):
        part = slice(start, start + split)
        meter.add(output[part], None if label is None else label[part], LOGITS[part])
    return meter.report()


@pytest.mark.parametrize(("metric", "best"), [("top1", 1), ("top5", 5)])
def test_hits_match_a_plain_count(metric: Metric, best: int) -> None:
    hits = sum(
        int(label) in sorted(range(7), key=lambda c: -float(row[c]))[:best]
        for row, label in zip(LOGITS, LABEL, strict=True)
    )
    quality = measure(metric, LOGITS, LABEL)
    assert quality.value == pytest.approx(hits / 40)
    assert quality.samples == 40


def test_of_equal_answers_the_first_counts_as_argmax_has_it() -> None:
    """int8 answers are often equal, and a user checks with argmax."""
    answers = torch.randint(0, 3, (40, 7), generator=torch.Generator().manual_seed(3)).float()
    expected = float((answers.argmax(1) == LABEL).float().mean())
    assert measure("top1", answers, LABEL).value == pytest.approx(expected)
    equal = torch.zeros(40, 7)
    assert measure("top5", equal, LABEL).value == pytest.approx(float((LABEL < 5).float().mean()))


def test_errors_match_their_formulas_over_uneven_batches() -> None:
    target = torch.randn(40, 7)
    assert measure("mse", LOGITS, target).value == pytest.approx(
        float((LOGITS - target).square().mean()), rel=1e-5
    )
    assert measure("mae", LOGITS, target).value == pytest.approx(
        float((LOGITS - target).abs().mean()), rel=1e-5
    )


def test_agreement_is_the_share_of_equal_top_classes() -> None:
    expected = float((OTHER.argmax(1) == LOGITS.argmax(1)).float().mean())
    assert 0 < expected < 1
    assert measure("agreement", OTHER, None).value == pytest.approx(expected)


def test_a_positive_drop_is_always_worse() -> None:
    better = QualityMeter("mse")
    worse = QualityMeter("mse")
    target = torch.zeros(4, 2)
    better.add(target + 0.1, target, target)
    worse.add(target + 0.3, target, target)
    assert worse.report(better.report()).drop == pytest.approx(0.08)
    assert better.report(worse.report()).drop == pytest.approx(-0.08)
    top = Quality(metric="top1", value=0.9, samples=10)
    meter = QualityMeter("top1")
    meter.add(torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([0, 0]), None)
    assert meter.report(top).drop == pytest.approx(0.4)


def test_budget_is_points_for_hits_and_a_fraction_for_errors() -> None:
    def quality(metric: str, value: float, drop: float) -> Quality:
        return Quality(metric=metric, value=value, samples=1, drop=drop)

    base = Quality(metric="top1", value=0.91, samples=1)
    assert within_budget(quality("top1", 0.9, 0.01), base, 0.01)
    assert not within_budget(quality("top1", 0.899, 0.011), base, 0.01)
    error = Quality(metric="mse", value=50.0, samples=1)
    assert within_budget(quality("mse", 50.4, 0.4), error, 0.01)
    assert not within_budget(quality("mse", 51.0, 1.0), error, 0.01)


def test_the_metric_follows_from_the_labels() -> None:
    assert pick_metric(None, LABEL, LOGITS) == "top1"
    assert pick_metric(None, torch.zeros(40, 7), LOGITS) == "mse"
    assert pick_metric(None, None, LOGITS) == "agreement"
    assert pick_metric(None, None, torch.zeros(40, 1)) is None


@pytest.mark.parametrize(
    ("metric", "label", "error", "told"),
    [
        ("top1", None, InvalidSpec, "needs labels"),
        ("top1", torch.full((40,), 7), LabelMismatch, "classes 0 to 6"),
        ("top1", torch.zeros(40, 3, dtype=torch.long), LabelMismatch, "one class id"),
        ("top1", torch.zeros(40), LabelMismatch, "integer class ids"),
        ("mse", torch.zeros(40, 2), LabelMismatch, "do not fit outputs"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    metric: Metric, label: Tensor | None, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        pick_metric(metric, label, LOGITS)


@pytest.mark.parametrize("metric", ["top1", "top5", "f1"])
def test_what_has_no_label_does_not_count(metric: Metric) -> None:
    marked = LABEL.clone()
    marked[5:17] = -100
    known = marked != -100
    expected = QualityMeter(metric)
    expected.add(OTHER[known], LABEL[known], LOGITS[known])
    quality = measure(metric, OTHER, marked, split=4)  # a batch without any label, too
    assert quality.value == pytest.approx(expected.report().value)
    with pytest.raises(BadEvaluationData, match="Every label is -100"):
        measure(metric, OTHER, torch.full_like(LABEL, -100))


def test_segmentation_counts_pixels() -> None:
    output = torch.randn(2, 3, 4, 4)
    label = output.argmax(1)
    label[0, 0, 0] = (label[0, 0, 0] + 1) % 3
    meter = QualityMeter("top1")
    meter.add(output, label, None)
    assert meter.report().value == pytest.approx(31 / 32)


def test_sqnr_and_cosine_match_their_formulas() -> None:
    meter = NoiseMeter()
    meter.add(LOGITS[:15], OTHER[:15])
    meter.add(LOGITS[15:], OTHER[15:])
    a, b = LOGITS.double().flatten(), OTHER.double().flatten()
    assert meter.sqnr_db == pytest.approx(10 * math.log10((a @ a) / ((a - b) @ (a - b))))
    assert meter.cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())))


def test_equal_outputs_give_the_limit_and_nan_the_other_one() -> None:
    meter = FidelityMeter()
    meter.add(LOGITS, LOGITS)
    report = meter.report()
    assert (report.sqnr_db, report.cosine, report.top1_agreement) == (
        SQNR_LIMIT_DB,
        pytest.approx(1.0),
        1.0,
    )
    broken = FidelityMeter()
    broken.add(LOGITS, LOGITS * float("nan"))
    assert broken.report().sqnr_db == -SQNR_LIMIT_DB


def test_fidelity_walks_nested_outputs_and_refuses_other_shapes() -> None:
    meter = FidelityMeter()
    meter.add({"a": (LOGITS, [LABEL])}, {"a": (OTHER, [LABEL])})
    assert meter.report().sqnr_db < 20
    with pytest.raises(BadOutput):
        meter.add((LOGITS,), (LOGITS[:, :3],))


def test_outputs_flatten_in_order_and_compare_by_structure() -> None:
    nested = {"x": (LABEL, [LOGITS]), "y": None}
    assert [t is o for t, o in zip(output_tensors(nested), (LABEL, LOGITS), strict=True)]
    assert torch.equal(primary_output(nested), LOGITS)
    assert same_structure(nested, {"x": (LABEL, [OTHER]), "y": None})
    assert not same_structure(nested, {"x": [LABEL, [OTHER]], "y": None})
    assert not same_structure((LOGITS,), (LOGITS.double(),))
    with pytest.raises(BadOutput):
        primary_output(LABEL)


def test_named_tuples_are_alike_by_their_fields_not_their_class() -> None:
    """Each load of a file makes classes of its own."""
    one, same, other = (namedtuple("Answer", names) for names in ("a n", "a n", "b n"))  # type: ignore[misc]
    assert same_structure(one(LOGITS, 3), same(OTHER, 4))
    assert not same_structure(one(LOGITS, 3), other(LOGITS, 3))
    assert not same_structure(one(LOGITS, 3), (LOGITS, 3))
    assert len(output_tensors([one(LOGITS, 3), "en", None, 0.5])) == 1


def test_environment_reads_names_and_flags() -> None:
    name, flags = parse_cpu_info(
        "processor : 0\nmodel name\t: Some CPU @ 2.1\nflags\t\t: fpu avx2 avx512_vnni\n\n"
        "processor : 1\nmodel name : Other\nflags : fpu\n"
    )
    assert name == "Some CPU @ 2.1"
    assert flags == {"fpu", "avx2", "avx512_vnni"}
    environment = read_environment(3)
    assert environment.threads == 3
    assert environment.torch == torch.__version__
    assert int8_saturates(environment) == ("avx512_vnni" not in environment.isa)


def test_an_error_that_is_no_number_is_refused_with_its_cause() -> None:
    """JSON has no NaN, and a report with one would compare as nothing."""
    fine, broken = QualityMeter("mse"), QualityMeter("mse")
    fine.add(LOGITS, LOGITS + 1, LOGITS)
    broken.add(LOGITS * math.inf, LOGITS, LOGITS)
    with pytest.raises(BadEvaluationData, match="mse is"):
        broken.report()
    with pytest.raises(BadOutput, match="another precision"):
        broken.report(fine.report())


@pytest.mark.parametrize("classes", [7, 12])
def test_f1_is_scikit_learns_macro_average_over_classes_seen(classes: int) -> None:
    """Of 12 classes some occur nowhere, and some only in answers."""
    generator = torch.Generator().manual_seed(5)
    answers = torch.randn(40, classes, generator=generator)
    answers[:, 9:] = -9
    label = torch.randint(0, min(8, classes), (40,), generator=generator)
    answers[range(40), label] += 1
    expected = f1_score(label, answers.argmax(1), average="macro", zero_division=0)
    assert 0 < expected < 1
    assert measure("f1", answers, label).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("as_probabilities", [False, True])
@pytest.mark.parametrize("outputs", [5, 1])
def test_f1_of_indicators_matches_scikit_learn(outputs: int, as_probabilities: bool) -> None:
    """Logits say yes above 0, probabilities above 0.5; the artifact follows the original."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(40, outputs, generator=generator)
    other = logits + torch.randn(40, outputs, generator=generator)
    label = torch.randint(0, 2, (40, outputs), generator=generator).float()
    if outputs > 1:
        label[:, 2], other[:, 2] = 0, -1.0  # neither in labels nor in answers: counts 0
    squash = torch.sigmoid if as_probabilities else torch.clone
    meter = QualityMeter("f1")
    for start in range(0, 40, 13):
        part = slice(start, start + 13)
        meter.add(squash(other[part]), label[part], squash(logits[part]))
    expected = f1_score(
        label if outputs > 1 else label[:, 0],
        (other > 0) if outputs > 1 else (other[:, 0] > 0),
        average="macro",
        zero_division=0,
    )
    assert meter.report().value == pytest.approx(expected, abs=1e-12)


def test_f1_of_one_number_a_sample_counts_both_answers() -> None:
    meter = QualityMeter("f1")
    answers, label = torch.tensor([1.0, -1, 2, -3]), torch.tensor([1, 0, 0, 0])
    meter.add(answers, label, answers)
    assert meter.report().value == pytest.approx(f1_score(label, answers > 0, average="macro"))


@pytest.mark.parametrize("metric", ["top1", "top5", "f1", "mse", "mae"])
@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 4, 5), (6, 8, 9), (6, 9, 8)])
def test_every_metric_takes_classes_pixels_tokens_and_series(
    metric: Metric, shape: tuple[int, ...]
) -> None:
    """Nine classes, wherever the labels' shape says they are."""
    generator = torch.Generator().manual_seed(7)
    axis = shape.index(9)
    answers = torch.randn(shape, generator=generator)
    label = torch.randint(0, 9, shape[:axis] + shape[axis + 1 :], generator=generator)
    rows, ids = answers.movedim(axis, -1).reshape(-1, 9), label.flatten()
    expected = {
        "top1": float((rows.argmax(1) == ids).double().mean()),
        "top5": float((rows.topk(5).indices == ids[:, None]).any(1).double().mean()),
        "f1": f1_score(ids, rows.argmax(1), average="macro", zero_division=0),
    }
    target = label if metric in expected else torch.randn(shape, generator=generator)
    error = (answers - target).double() if target.shape == answers.shape else answers.double()
    expected |= {"mse": float(error.square().mean()), "mae": float(error.abs().mean())}
    assert pick_metric(metric, target, answers) == metric
    meter = QualityMeter(metric)
    for part in (slice(0, 4), slice(4, 6)):
        meter.add(answers[part], target[part], answers[part])
    assert meter.report().value == pytest.approx(expected[metric], rel=1e-6)


def test_tokens_agree_by_their_classes_not_by_their_places() -> None:
    answers = torch.zeros(2, 3, 4)
    answers[:, :, 1] = torch.tensor([[1.0, 2, 3], [1, 2, 3]])
    other = answers.clone()
    other[0, 0, 2] = 9.0  # one token of six changes its class
    meter = QualityMeter("agreement")
    meter.add(other, None, answers)
    assert meter.report().value == pytest.approx(5 / 6)
    fidelity = FidelityMeter()
    fidelity.add(answers, other)
    assert fidelity.report().top1_agreement == pytest.approx(5 / 6)


def test_f1_refuses_floats_that_are_neither_0_nor_1() -> None:
    with pytest.raises(LabelMismatch, match="other than 0 and 1"):
        pick_metric("f1", torch.rand(40, 7), LOGITS)
