"""Inputs declared at upload, matched to forward's arguments."""

from __future__ import annotations

from collections.abc import Sequence

from compress.spec import TensorSpec
from compress.spec.arguments import ForwardArgument, Layout, Slot, bind
from compress.spec.names import Misfit, Place

_BITS = {"int8": (-(2**7), 2**7), "uint8": (0, 2**8), "int16": (-(2**15), 2**15),
         "int32": (-(2**31), 2**31)}  # fmt: skip


def bind_declared(arguments: Sequence[ForwardArgument], inputs: Sequence[TensorSpec]) -> Layout:
    """Match declared inputs, which are named as forward's arguments are, with `.key` behind.

    Raises:
        Misfit: As `bind_arrays`; also for a value that its argument does not take.
    """
    places: dict[str, Place] = {}
    for declared in inputs:
        if declared.name in places:
            raise Misfit("duplicate_array", f"{declared.name!a} is declared twice.", declared.name)
        places[declared.name] = read_declared(arguments, declared.name)
    layout = bind(arguments, places, [argument.name for argument in arguments])
    by_name = {declared.name: declared for declared in inputs}
    for slot in layout.slots:
        _check_value(slot, by_name[slot.name])
    return layout


def read_declared(arguments: Sequence[ForwardArgument], name: str) -> Place:
    """Return the place of a declared input; behind all arguments, where it is named as none."""
    head, *path = name.split(".")
    names = [argument.name for argument in arguments]
    return Place(names.index(head) if head in names else len(names), tuple(path))


def _check_value(slot: Slot, declared: TensorSpec) -> None:
    value = declared.value
    if slot.type != "Tensor":
        takes: tuple[type, ...] = {"int": (int,), "float": (float, int), "bool": (bool,)}[slot.type]
        is_bool = isinstance(value, bool)
        if declared.shape or not isinstance(value, takes) or is_bool != (slot.type == "bool"):
            raise Misfit(
                "shape_mismatch",
                f"Argument '{slot.argument}' of forward takes a Python {slot.type} from "
                f"{declared.name}: declare it with the shape [] and such a `value`.",
                declared.name,
            )
        return
    if value is None:
        return
    low, high = _BITS.get(declared.dtype, (-(2**63), 2**63))
    if isinstance(value, bool) or declared.dtype == "bool":
        fits = isinstance(value, bool) and declared.dtype == "bool"
    else:
        fits = declared.dtype.startswith("float") or (
            isinstance(value, int) and low <= value < high
        )
    if not fits:
        raise Misfit(
            "shape_mismatch",
            f"The value {value} of {declared.name} is none of {declared.dtype}.",
            declared.name,
        )
