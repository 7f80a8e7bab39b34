"""Which array goes where in forward's arguments, and what is said where one does not."""

from __future__ import annotations

from typing import Any

import pytest

from compress.spec import TensorSpec
from compress.spec.arguments import ForwardArgument, bind_arrays, check_number, check_signature
from compress.spec.declared import bind_declared
from compress.spec.names import Misfit, order_names
from compress.spec.types import read_type

POINT = {"__torch__.Pt": {"x": "Tensor", "y": "Optional[Tensor]"}}


def forward(*types: str) -> list[ForwardArgument]:
    """Arguments a, b, c …; a type that ends in `= None` has a default."""
    return [
        ForwardArgument(
            name=name,
            type=text.removesuffix(" = None"),
            has_default=text.endswith(" = None"),
            fields=POINT,
        )
        for name, text in zip("abcdef", types, strict=False)
    ]


def bound(types: tuple[str, ...], names: list[str]) -> list[Any]:
    return bind_arrays(forward(*types), names).fill(lambda slot: slot.name)


@pytest.mark.parametrize(
    ("types", "names", "entries"),
    [
        (("Tensor",), ["input"], ["input"]),
        (("Tensor", "Tensor"), ["input_1", "input_0"], ["input_0", "input_1"]),
        (("Tensor", "Tensor = None"), ["input"], ["input"]),
        (("Tensor", "Tensor = None"), ["input_0"], ["input_0"]),
        (
            ("Tensor", "Optional[Tensor] = None", "Optional[Tensor] = None"),
            ["input_0", "input_2"],
            ["input_0", None, "input_2"],
        ),
        (("Tensor", "Optional[Tensor]"), ["input"], ["input", None]),
        (("Tensor", "str = None", "int"), ["input_0", "input_2"], ["input_0", None, "input_2"]),
        (
            ("Tuple[Tensor, List[Tensor]]",),
            ["input.0", "input.1.1", "input.1.0"],
            [("input.0", ["input.1.0", "input.1.1"])],
        ),
        (
            ("Tensor", "Dict[str, Tensor]"),
            ["input_0", "input_1.b", "input_1.a-2"],
            ["input_0", {"a-2": "input_1.a-2", "b": "input_1.b"}],
        ),
        (("Dict[int, Tensor]",), ["input.-3", "input.10"], [{10: "input.10", -3: "input.-3"}]),
        (("__torch__.Pt",), ["input.x"], [("input.x", None)]),
        (("Tuple[Tensor, int]",), ["input.0", "input.1"], [("input.0", "input.1")]),
        (("List[Optional[Tensor]]",), ["input.2"], [[None, None, "input.2"]]),
        (("Union[Tensor, int, NoneType]",), ["input"], ["input"]),
    ],
)
def test_arrays_go_where_their_names_say(
    types: tuple[str, ...], names: list[str], entries: list[Any]
) -> None:
    assert bound(types, names) == entries


def test_a_named_tuple_bears_its_name_and_fields() -> None:
    [point] = bound(("__torch__.Pt",), ["input.y", "input.x"])
    assert (type(point).__name__, point._fields) == ("Pt", ("x", "y"))
    assert type(point) is type(bound(("__torch__.Pt",), ["input.x"])[0])


@pytest.mark.parametrize(
    ("types", "names", "told"),
    [
        (("Tensor",), ["input_0", "input_1"], r"takes 1 inputs \(a\), but input_0, input_1 are "
         "given: there is no argument for input_1"),
        (("Tensor", "Tensor"), ["input_0"], "argument 'b' takes input_1"),
        (("Tensor", "Tensor", "Tensor"), ["input_0", "input_2"], "argument 'b' takes input_1"),
        (("Tensor", "Tuple[Tensor, Tensor]"), ["input"], "takes input_1.0 and input_1.1"),
        (("Tuple[Tensor, Tensor]",), ["input"], "takes input.0 and input.1, but input is given"),
        (("Tuple[Tensor, Tensor]",), ["input.0"], "takes input.0 and input.1, but input.0 is"),
        (("Tuple[Tensor, Tensor]",), ["input.0", "input.2"], "but input.0, input.2 are given"),
        (("Tensor",), ["input.0"], "takes input, but input.0 is given"),
        (("__torch__.Pt",), ["input.0"], "takes input.x and input.y, but input.0 is"),
        (("List[Tensor]",), ["input.1"], "takes input.0 and so on, but input.1"),
        (("List[Tensor]",), ["input.x"], "takes input.0 and so on"),
        (("Dict[int, Tensor]",), ["input.x"], r"takes input.NUMBER, but"),
        (("Dict[str, Tuple[Tensor, Tensor]]",), ["input.a.0"], r"with Tuple\[Tensor, Tensor\] in"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named(
    types: tuple[str, ...], names: list[str], told: str
) -> None:
    with pytest.raises(Misfit, match=told) as caught:
        bound(types, names)
    assert caught.value.code == "shape_mismatch"
    assert not caught.value.detail.endswith("..")


@pytest.mark.parametrize(
    "text",
    ["str", "Any", "List[str]", "Device", "__torch__.Other", "Dict[float, Tensor]", "Tensor]",
     "Tuple[Tensor, str]", "A" * 400, "List[" * 300, "Tuple[()]", ""],
)  # fmt: skip
def test_types_that_cannot_be_given(text: str) -> None:
    assert not read_type(text).can_be_given
    for act in (lambda: check_signature(forward(text)), lambda: bound((text,), ["input"])):
        with pytest.raises(Misfit, match="only tensors, numbers") as caught:
            act()
        assert caught.value.code == "bad_signature"
    check_signature(forward("Tensor", f"{text} = None"))


def test_a_forward_of_nothing_cannot_be_run() -> None:
    with pytest.raises(Misfit, match="takes no input"):
        check_signature([])


def test_named_tuples_that_hold_each_other_end() -> None:
    fields = {f"n{i}": {f"f{j}": f"n{(i + 1) % 3}" for j in range(50)} for i in range(3)}
    assert not read_type("n0", fields).can_be_given


def test_names_sort_by_argument_and_key() -> None:
    names = ["input_10", "input_2.b", "input_2.10", "input_2.9", "input_2.a.1", "input_2.a.0"]
    assert order_names(names) == [
        "input_2.9", "input_2.10", "input_2.a.0", "input_2.a.1", "input_2.b", "input_10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["input_01"], "unknown_array"), (["input."], "unknown_array"),
        (["inputs"], "unknown_array"),
        (["input_0.a/b"], "unknown_array"), (["input.a" + ".b" * 8], "unknown_array"),
        (["input.ä"], "unknown_array"), (["input." + "a" * 101], "unknown_array"),
        (["input_99999"], "unknown_array"), (["input", "input_0"], "duplicate_array"),
        (["input.a", "input_0.a"], "duplicate_array"),
        (["input_0", "input_0.a.b"], "duplicate_array"),
        ([f"input_0.{i}" for i in range(1001)], "invalid_dataset"),
    ],
)  # fmt: skip
def test_names_that_mean_nothing_or_the_same(names: list[str], code: str) -> None:
    with pytest.raises(Misfit) as caught:
        order_names(names)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "fits"),
    [
        ("int", "int64", (5,), True), ("int", "uint8", (5,), True), ("int", "float32", (5,), False),
        ("float", "float16", (5,), True), ("float", "int32", (5,), True),
        ("bool", "bool", (5,), True), ("bool", "int64", (5,), False), ("int", "bool", (5,), False),
        ("int", "int64", (5, 1), False), ("Tensor", "bool", (5, 2), True),
    ],
)  # fmt: skip
def test_numbers_are_read_from_arrays_of_one_axis(
    kind: str, dtype: str, shape: tuple[int, ...], fits: bool
) -> None:
    [slot] = bind_arrays(forward(kind), ["input"]).slots
    if fits:
        check_number(slot, dtype, shape)
        return
    with pytest.raises(Misfit, match=f"a Python {kind} from input"):
        check_number(slot, dtype, shape)


def declare(types: tuple[str, ...], *inputs: dict[str, Any]) -> list[Any]:
    specs = [TensorSpec(**each) for each in inputs]
    return bind_declared(forward(*types), specs).fill(lambda slot: slot.name)


def test_declared_inputs_are_named_as_the_arguments_are() -> None:
    assert declare(
        ("Tensor", "int", "Dict[str, Tensor]"),
        {"name": "a", "shape": ("batch", 3)},
        {"name": "b", "dtype": "int64", "value": 3},
        {"name": "c.mask", "dtype": "bool", "shape": ("batch",), "value": True},
    ) == ["a", "b", {"mask": "c.mask"}]


@pytest.mark.parametrize(
    ("types", "declared", "told"),
    [
        (("Tensor",), {"name": "x"}, "no argument for x"),
        (("int",), {"name": "a", "dtype": "int64"}, "`value`"),
        (("int",), {"name": "a", "value": 1.5}, "`value`"),
        (("int",), {"name": "a", "value": True}, "`value`"),
        (("bool",), {"name": "a", "value": 1}, "`value`"),
        (("float",), {"name": "a", "value": 1, "shape": (2,)}, r"shape \[\]"),
        (("Tensor",), {"name": "a", "dtype": "int8", "value": 300}, "none of int8"),
        (("Tensor",), {"name": "a", "dtype": "int8", "value": 0.5}, "none of int8"),
        (("Tensor",), {"name": "a", "dtype": "bool", "value": 1}, "none of bool"),
        (("Tensor",), {"name": "a", "dtype": "float32", "value": True}, "none of float32"),
        (("Tensor", "Tensor"), {"name": "a"}, "argument 'b' takes b"),
    ],
)
def test_declared_inputs_that_do_not_fit(
    types: tuple[str, ...], declared: dict[str, Any], told: str
) -> None:
    with pytest.raises(Misfit, match=told):
        declare(types, declared)


def test_an_input_declared_twice() -> None:
    for second in ("a", "a.0"):
        with pytest.raises(Misfit, match="a"):
            declare(("Tensor",), {"name": "a"}, {"name": second})
