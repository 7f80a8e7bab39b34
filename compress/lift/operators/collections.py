"""Lists, tuples, dicts, strings and what TorchScript asks about shapes and types.

They exist only while the model is lifted: the graph sees their elements, never the containers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Parts, Symbol, Value, View, concrete, symbols_in

# On lists, strings and dicts: computed at once, by Python itself.
_PLAIN: dict[str, Callable[..., Any]] = {
    "aten::len": len,
    "aten::__contains__": operator.contains,
    "aten::append": lambda items, item: items.append(item) or items,
    "aten::extend": lambda items, more: items.extend(more),
    "aten::insert": lambda items, index, item: items.insert(index, item),
    "aten::pop": lambda items, *key: items.pop(*key),
    "aten::clear": lambda items: items.clear(),
    "aten::reverse": lambda items: items.reverse(),
    "aten::copy": lambda items: items.copy(),
    "aten::list": list,
    "aten::dict": dict,
    "aten::keys": lambda mapping: list(mapping),
    "aten::values": lambda mapping: list(mapping.values()),
    "aten::items": lambda mapping: list(mapping.items()),
    "aten::get": lambda mapping, key, default=None: mapping.get(key, default),
    "aten::update": lambda mapping, more: mapping.update(more),
    "aten::add": operator.add,
    "aten::add_": operator.iadd,
    "aten::mul": operator.mul,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lower": str.lower,
    "aten::upper": str.upper,
    "aten::startswith": str.startswith,
    "aten::endswith": str.endswith,
    "aten::str": str,
    "aten::ord": ord,
    "aten::hash": hash,
}
# Results that a branch may hang on: what they compare must then stay what it was.
_COMPARING = frozenset({"aten::eq", "aten::ne", "aten::__contains__"})


def lift_collections(builder: GraphBuilder, call: Call) -> Value:
    """Lifts a call on a list, dict or string; `NotImplemented` when it is none."""
    values = call.values
    if not values or not isinstance(values[0], list | dict | str | tuple):
        return NotImplemented
    parts = [value for value in values if isinstance(value, Parts)]
    if parts and call.name == "aten::len":
        return parts[0].length
    if parts and (call.name in _PLAIN or call.name == "aten::slice"):
        builder.fixed([each.length for each in parts])
    if call.name == "aten::slice":
        start, end, step = (builder.fixed(value) for value in values[1:])
        return values[0][start:end:step]
    function = _PLAIN.get(call.name)
    if function is None:
        return NotImplemented
    if call.name in _COMPARING and isinstance(values[0], list | tuple):
        if any(symbol.is_tensor for symbol in symbols_in(values)):
            return NotImplemented
        if call.name == "aten::__contains__":
            return function(*(builder.fixed(value) for value in values))
        equal = _equal(builder, *values)
        if call.name == "aten::eq":
            return equal
        return builder.call(operator.eq, equal, False) if symbols_in(equal) else not equal
    return function(*values)


def _equal(builder: GraphBuilder, left: Value, right: Value) -> Value:
    """Whether two lists of numbers are equal, for all inputs as for the example.

    Where they are, each pair stays so: `x.size(0) == y.size(0)`, not `x.size(0) == 2`. What hangs
    on data is a symbol.
    """
    if len(left) != len(right):
        return False
    open_pairs: list[Value] = []
    for mine, other in zip(left, right, strict=True):
        if mine is other:
            continue
        if isinstance(mine, list | tuple):
            same = _equal(builder, mine, other)
        elif not symbols_in([mine, other]):
            same = mine == other
        else:
            same = builder.call(operator.eq, mine, other)
            if not any(symbol.from_data for symbol in symbols_in([mine, other])):
                same = builder.fixed(same)
        if symbols_in(same):
            open_pairs.append(same)
        elif not same:
            return False
    if not open_pairs:
        return True
    return functools.reduce(functools.partial(builder.call, operator.and_), open_pairs)


@rule("aten::__getitem__")
def _item(builder: GraphBuilder, call: Call) -> Value:
    items, key = call.values
    if isinstance(items, list | tuple | dict | str):
        return items[builder.fixed(key)]
    if isinstance(items, Symbol) and isinstance(items.value, list):
        part = builder.call(operator.getitem, items, key)
        # which part it is only running shows, so nothing can be written through it
        part.view = View(items, lambda: _item(builder, call), None)
        return part
    return NotImplemented


@rule("aten::_set_item")
def _set_item(builder: GraphBuilder, call: Call) -> Value:
    items, key, item = call.values
    items[builder.fixed(key)] = item
    return items


@rule("aten::format", "aten::percentFormat")
def _format(builder: GraphBuilder, call: Call) -> Value:
    text, *values = (concrete(value) for value in call.values)
    if call.name == "aten::percentFormat":
        return text % tuple(values)
    return text.format(*values)


@rule("aten::__is__", "aten::__isnot__")
def _is(builder: GraphBuilder, call: Call) -> Value:
    left, right = call.values
    return (left is right) == (call.name == "aten::__is__")


@rule("aten::__range_length")
def _range_length(builder: GraphBuilder, call: Call) -> Value:
    low, high, step = call.values
    if symbols_in(call.values) and (low, step) == (0, 1):
        return high
    return len(range(*(builder.fixed(value) for value in call.values)))


@rule("aten::__derive_index")
def _derive_index(builder: GraphBuilder, call: Call) -> Value:
    index, start, step = (builder.fixed(value) for value in call.values)
    return start + index * step


@rule("aten::size")
def _size(builder: GraphBuilder, call: Call) -> Value:
    tensor = _tensor(call)
    assert isinstance(tensor.value, Tensor)
    if "dim" in call.arguments:
        return builder.size(tensor, builder.fixed(call["dim"]))
    return [builder.size(tensor, dim) for dim in range(tensor.value.dim())]


@rule("aten::len")
def _length(builder: GraphBuilder, call: Call) -> Value:
    if isinstance(call.values[0].value, list):  # filled by a loop
        return builder.call(len, call.values[0])
    return builder.size(_tensor(call), 0)


@rule("aten::numel")
def _element_count(builder: GraphBuilder, call: Call) -> Value:
    tensor = _tensor(call)
    assert isinstance(tensor.value, Tensor)
    count: Value = 1
    for dim in range(tensor.value.dim()):
        count = builder.call(operator.mul, count, builder.size(tensor, dim))
    return count


@rule("prim::tolist")
def _to_list(builder: GraphBuilder, call: Call) -> Value:
    return _tensor(call).value.tolist() if _tensor(call).is_constant else NotImplemented  # type: ignore[union-attr]


# What is the same for every input of one rank and dtype.
_FACTS: dict[str, Callable[[Tensor], Any]] = {
    "aten::dim": Tensor.dim,
    "aten::is_floating_point": Tensor.is_floating_point,
    "aten::is_complex": Tensor.is_complex,
    "aten::is_contiguous": Tensor.is_contiguous,
    "aten::get_device": lambda tensor: -1,  # what is lifted computes on the processor
    "prim::dtype": lambda tensor: tensor.dtype,
    "prim::device": lambda tensor: torch.device("cpu"),
    "prim::layout": lambda tensor: tensor.layout,
    "prim::is_cuda": lambda tensor: tensor.is_cuda,
    "prim::is_quantized": lambda tensor: tensor.is_quantized,
    "prim::is_nested": lambda tensor: tensor.is_nested,
    "prim::is_sparse": lambda tensor: tensor.is_sparse,
    "prim::is_mkldnn": lambda tensor: tensor.is_mkldnn,
    "prim::requires_grad": lambda tensor: tensor.requires_grad,
}


@rule(*_FACTS)
def _fact(builder: GraphBuilder, call: Call) -> Value:
    return _FACTS[call.name](_tensor(call).value)  # type: ignore[arg-type]


def _tensor(call: Call) -> Symbol:
    tensor = call.values[0]
    assert isinstance(tensor, Symbol)
    return tensor
