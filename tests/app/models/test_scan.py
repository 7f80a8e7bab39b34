from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from app.errors import Unprocessable
from app.models.scan import MAX_CODE_BYTES, scan_model
from compress.lift import forward_arguments
from compress.spec.arguments import ForwardArgument
from tests.app import samples
from tests.compress import zoo


def code_of(path: Path, content: bytes) -> tuple[str, str]:
    path.write_bytes(content)
    with pytest.raises(Unprocessable) as caught:
        scan_model(path)
    return caught.value.code, caught.value.detail


def rewritten(content: bytes, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> bytes:
    """Return the archive with each entry passed through `change`, which may drop it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            entry = change(name, old.read(name))
            if entry is not None:
                new.writestr(*entry)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["scripted", "traced"])
@pytest.mark.parametrize("make", [zoo.small_cnn, zoo.senet, zoo.unet, zoo.shufflenet, zoo.densenet])
def test_arguments_and_parameters_are_those_torch_sees(
    make: Callable[[], nn.Module], form: str, tmp_path: Path
) -> None:
    net = make()
    channels = 1 if make is zoo.small_cnn else 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = (
            torch.jit.script(net)
            if form == "scripted"
            else torch.jit.trace(net, torch.rand(1, channels, 32, 32), check_trace=False)
        )
    path = tmp_path / "m.pt"
    path.write_bytes(samples.saved(module))
    facts = scan_model(path)
    loaded = torch.jit.load(path)
    expected = [argument.name for argument in loaded.forward.schema.arguments][1:]
    assert [argument["name"] for argument in facts.arguments] == expected
    assert {argument["type"] for argument in facts.arguments} == {"Tensor"}
    assert facts.parameters == sum(each.numel() for each in loaded.parameters())
    convolutions = facts.operators.keys() & {"aten::conv2d", "aten::_convolution"}
    assert convolutions


def test_shared_weights_count_once_and_defaults_show(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(samples.two_inputs())
    facts = scan_model(path)
    assert facts.parameters == 4 * 3 + 3 + 3
    assert facts.arguments == [
        {"name": "a", "type": "Tensor", "has_default": False},
        {"name": "b", "type": "Optional[Tensor]", "has_default": True},
        {"name": "twice", "type": "bool", "has_default": True},
    ]


def test_fields_of_named_tuples_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(samples.structured())
    batch, more, bias, scale = scan_model(path).arguments
    outer, inner = (f"__torch__.tests.compress.structured.{name}" for name in ("Outer", "Inner"))
    assert batch == {
        "name": "batch",
        "type": outer,
        "has_default": False,
        "fields": {
            outer: {"ids": "Tensor", "inner": inner, "mask": "Optional[Tensor]"},
            inner: {"sizes": "Tuple[Tensor, int]"},
        },
    }
    assert [each["type"] for each in (more, bias, scale)] == [
        "Dict[str, Tensor]", "Optional[Tensor]", "float",
    ]  # fmt: skip
    assert "fields" not in more


@pytest.mark.parametrize("content", [samples.structured, samples.two_inputs, samples.text_input])
def test_the_engine_reads_the_same_arguments(content: Callable[[], bytes], tmp_path: Path) -> None:
    """Or a submit would take what the job then refuses."""
    path = tmp_path / "m.pt"
    path.write_bytes(content())
    for facts, argument in zip(
        scan_model(path).arguments, forward_arguments(torch.jit.load(path)), strict=True
    ):
        assert replace(argument, default=None) == ForwardArgument(**facts)


def test_named_tuples_that_hold_each_other_end(tmp_path: Path) -> None:
    def loop(name: str, content: bytes) -> tuple[str, bytes]:
        return name, content.replace(
            b"sizes : Tuple[Tensor, int]", b"sizes : __torch__.tests.compress.structured.Outer"
        )

    path = tmp_path / "m.pt"
    path.write_bytes(rewritten(samples.structured(), loop))
    assert len(scan_model(path).arguments[0]["fields"]) == 2


def test_a_frozen_model_is_taken_though_it_has_no_parameters(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(samples.saved(torch.jit.freeze(torch.jit.script(zoo.small_cnn()))))
    facts = scan_model(path)
    assert facts.parameters == 0
    assert facts.operators["aten::conv2d"] == 2


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    code, detail = code_of(tmp_path / "m", b"")
    assert code == "not_a_zip"
    assert "empty" in detail


@pytest.mark.parametrize("content", [b"hello" * 100, pickle.dumps([1]), b"\x93NUMPY\x01\x00" * 9])
def test_other_bytes_are_not_a_zip(content: bytes, tmp_path: Path) -> None:
    code, detail = code_of(tmp_path / "m", content)
    assert code == "not_a_zip"
    assert "torch.jit" in detail


def test_an_archive_without_entries(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    assert code_of(tmp_path / "m", buffer.getvalue())[0] == "empty_archive"


def test_a_state_dict_is_named_for_what_it_is(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(zoo.small_cnn().state_dict(), buffer)
    code, detail = code_of(tmp_path / "m", buffer.getvalue())
    assert code == "not_torchscript"
    assert "torch.save" in detail
    assert "torch.jit.trace" in detail


@pytest.mark.parametrize("content", [samples.npz(input=samples.images())])
def test_an_npz_is_sent_to_datasets(content: bytes, tmp_path: Path) -> None:
    code, detail = code_of(tmp_path / "m", content)
    assert code == "not_torchscript"
    assert "/v1/datasets" in detail


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_corrupt(share: float, tmp_path: Path) -> None:
    content = samples.scripted_cnn()
    code, _ = code_of(tmp_path / "m", content[: int(len(content) * share)])
    assert code == "corrupt_archive"


def test_a_flipped_weight_is_caught_by_its_checksum(tmp_path: Path) -> None:
    content = bytearray(samples.scripted_cnn())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = next(each for each in archive.infolist() if each.filename.endswith("data/7"))
    content[info.header_offset + 1000] ^= 1
    code, detail = code_of(tmp_path / "m", bytes(content))
    assert code == "corrupt_entry"
    assert "data/7" in detail


def test_code_that_is_no_code(tmp_path: Path) -> None:
    content = rewritten(
        samples.scripted_cnn(),
        lambda name, data: (name, b"def (" if "compress/zoo" in name else data),
    )
    assert code_of(tmp_path / "m", content)[0] == "bad_code"


def test_code_without_forward(tmp_path: Path) -> None:
    content = rewritten(
        samples.scripted_cnn(),
        lambda name, data: (
            name,
            data.replace(b"def forward", b"def other") if "compress/zoo" in name else data,
        ),
    )
    assert code_of(tmp_path / "m", content)[0] == "bad_signature"


@pytest.mark.parametrize("depth", [100, 1000, 50_000])
def test_code_that_nests_deeply_ends_in_a_code(depth: int, tmp_path: Path) -> None:
    for deep in (b"Tensor" + b".a" * depth, b"(" * depth + b"Tensor" + b")" * depth):
        content = rewritten(
            samples.scripted_cnn(),
            lambda name, data, deep=deep: (
                name,
                data.replace(b"image: Tensor", b"image: " + deep) if "zoo" in name else data,
            ),
        )
        path = tmp_path / "m"
        path.write_bytes(content)
        try:
            assert len(scan_model(path).arguments) == 1
        except Unprocessable as error:
            refused = error.code
            continue
        assert depth == 100, refused


def test_too_much_code(tmp_path: Path) -> None:
    content = rewritten(
        samples.scripted_cnn(),
        lambda name, data: (name, b"#" * (MAX_CODE_BYTES + 1) if "compress/zoo" in name else data),
    )
    assert code_of(tmp_path / "m", content)[0] == "code_too_large"


def test_a_pickle_is_read_and_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path.touch, (str(marker),)

    content = rewritten(
        samples.scripted_cnn(),
        lambda name, data: (name, pickle.dumps(Attack(), 2) if name.endswith("data.pkl") else data),
    )
    code, _ = code_of(tmp_path / "m", content)
    assert code == "forbidden_global"
    assert not marker.exists()


@pytest.mark.parametrize(
    "pickled", [b"", b".", b"\x80\x02", b"\x80\x02(((((t.", b"\xff" * 20, b"q\x00."]
)
def test_a_pickle_that_is_none(pickled: bytes, tmp_path: Path) -> None:
    content = rewritten(
        samples.scripted_cnn(),
        lambda name, data: (name, pickled if name.endswith("data.pkl") else data),
    )
    assert code_of(tmp_path / "m", content)[0] in ("corrupt_pickle", "not_torchscript")


@pytest.mark.parametrize("seed", range(200))
def test_random_damage_ends_in_a_code_or_in_facts(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    content = bytearray(samples.scripted_cnn())
    for _ in range(random.randint(1, 4)):
        content[random.randrange(len(content))] = random.randrange(256)
    path = tmp_path / "m"
    path.write_bytes(content)
    refused: Unprocessable | None = None
    try:
        assert scan_model(path).arguments
    except Unprocessable as error:
        refused = error
    assert refused is None or str(tmp_path) not in refused.detail
