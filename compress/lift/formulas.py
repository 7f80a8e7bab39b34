"""A model run without numbers: which operators it calls, on what, and of which sizes.

Two models whose outputs have the same formula compute the same, whatever the numbers: the same
operators on the same weights and inputs. That is known at a fraction of a forward's time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from compress.lift.signatures import Signature, read_signature
from compress.lift.state import state_of
from compress.structure import map_tensors, tensors_in

_UNKNOWABLE = (
    torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
)  # fmt: skip
_SAME = {"aten::_convolution": "aten::convolution"}
"""Operators that differ from others only in hints."""
_HINTS = frozenset({
    "benchmark", "deterministic", "cudnn_enabled", "allow_tf32", "device", "pin_memory",
    "non_blocking",
})  # fmt: skip
"""Arguments that say how or where to compute, not what."""
_FLAGS = (torch.bool, torch.uint8)
_HEAD = 8
_LEAF, _INPUT = "leaf", "input"

Formula = Any
"""What a tensor is, hashable; a structure of these for a structure of tensors."""


class Formulas(TorchDispatchMode):
    """Runs what is called inside on stand-ins without numbers, and notes each one's formula.

    Weights and constants stay themselves, and what is computed of them alone is computed. A memory
    has a formula; a tensor is a window on one: views and writing in place need no more.

    Args:
        module: The original, which a run may not change.

    Attributes:
        failure: Why formulas are not enough, in this run; None where they are.
        operations: Multiplications and additions of matrix products and convolutions, this run.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        held = [*module.parameters(), *module.buffers(), *tensors_in(state_of(module))]
        self._state = {value.untyped_storage()._cdata for value in held}
        self.failure: str | None = None
        self.operations = 0
        self._numbers: dict[Formula, int] = {}
        self._memories: dict[int, tuple[Formula, torch.UntypedStorage]] = {}
        self._leaves: dict[Any, list[tuple[Tensor, int]]] = {}
        self._known: dict[Any, tuple[int, Tensor]] = {}
        self._mirrors: dict[Formula, Tensor] = {}
        self._joined: dict[Formula, tuple[int, tuple[Formula, ...]]] = {}
        self._leaf_count = 0

    @contextmanager
    def run(self, inputs: Sequence[Any]) -> Iterator[list[Any]]:
        """Begin a run on stand-ins for the inputs, which it gives."""
        self.failure, self.operations = None, 0
        self._memories.clear()
        self._mirrors.clear()
        count = 0

        def stand_in(value: Tensor) -> Tensor:
            nonlocal count
            made = _without_numbers(value)
            self._note(made, (_INPUT, count, tuple(made.shape), made.dtype))
            count += 1
            return made

        given = [map_tensors(value, stand_in) for value in inputs]
        with torch.no_grad(), self:
            yield given

    def of(self, value: Any) -> Formula:
        """The formula of a tensor of this run, or of all in a structure."""
        if isinstance(value, Tensor):
            return self._of_tensor(value)
        if isinstance(value, dict):
            return tuple(sorted((str(key), self.of(item)) for key, item in value.items()))
        if isinstance(value, list | tuple):
            return tuple(self.of(item) for item in value)
        return type(value).__name__, _single(value) if isinstance(value, float) else value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call one operator."""
        kwargs = kwargs or {}
        signature = read_signature(func)
        given = dict(zip(signature.names, args, strict=False)) | kwargs
        tensors = _flat(list(given.values()))
        if signature.name in _FILLED and not any(value.is_meta for value in tensors[1:]):
            return func(_with_numbers(args[0]), *args[1:], **_here(kwargs))
        if not any(value.is_meta for value in tensors):
            self._protect(signature, given)
            return func(*args, **_here(kwargs))
        self._check(func, signature, given)
        formula = self._of_call(signature, given)
        if "device" in kwargs:
            kwargs = kwargs | {"device": torch.device("meta")}
        result = self._call(
            func, map_tensors(args, self._mirror), map_tensors(kwargs, self._mirror)
        )
        for name in signature.written:
            self._write(given[name], formula)
        if signature.name in _COPIES and self._copy(args[0], result):
            return result
        for index, made in enumerate(_flat([result])):
            if made.untyped_storage()._cdata not in self._memories:
                self._note(made, (formula, index))
        if signature.name == "aten::cat":
            self._joined[self._of_tensor(result)] = (given.get("dim", 0), self._parts(given))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += int(count(*args, **kwargs, out_val=result))
        return result

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        shortcut = _SHORTCUTS.get(func)
        result = NotImplemented if shortcut is None else shortcut(*args, **kwargs)
        if result is not NotImplemented:
            return result
        try:
            return func(*args, **kwargs)
        except NotImplementedError as error:
            self.failure = str(error)
            raise

    def _check(self, func: Any, signature: Signature, given: dict[str, Any]) -> None:
        flags = func.overloadpacket is torch.ops.aten.index and any(
            value.dtype in _FLAGS for value in _flat([given["indices"]])
        )
        unknowable = any(tag in func.tags for tag in _UNKNOWABLE)
        if flags or (unknowable and func.overloadpacket is not torch.ops.aten.index):
            self.failure = f"{signature.name} hangs on numbers"
        if any(not value.is_meta for name in signature.written for value in _flat([given[name]])):
            self.failure = f"{signature.name} writes into a constant"
        if not signature.name.startswith("aten::"):
            self.failure = f"{signature.name} may do anything"

    def _protect(self, signature: Signature, given: dict[str, Any]) -> None:
        written = _flat([given[name] for name in signature.written])
        if any(value.untyped_storage()._cdata in self._state for value in written):
            self.failure = f"{signature.name} changes the model"
            raise NotImplementedError(self.failure)

    def _of_call(self, signature: Signature, given: dict[str, Any]) -> int:
        if signature.name == "aten::cat":
            return self._number(("aten::cat", given.get("dim", 0), self._parts(given)))
        arguments = tuple(
            (name, self.of(value))
            for name, value in given.items()
            if name not in _HINTS and not signature.is_default(name, value)
        )
        name = _SAME.get(signature.name, signature.name)
        return self._number((name, signature.overload, arguments))

    def _parts(self, given: dict[str, Any]) -> tuple[Formula, ...]:
        """What `cat` joins, and what that was joined of: the executor makes one of several."""
        parts: list[Formula] = []
        for part in self.of(given["tensors"]):
            dim, inner = self._joined.get(part, (None, (part,)))
            parts += inner if dim == given.get("dim", 0) else [part]
        return tuple(parts)

    def _copy(self, source: Tensor, made: Tensor) -> bool:
        """Give a copy of a whole memory that memory's formula; False where it is another copy."""
        if not source.is_meta or source.dtype != made.dtype or source.stride() != made.stride():
            return False
        memory, mine = source.untyped_storage(), made.untyped_storage()
        if not _is_whole(source) or not _is_whole(made):
            return False
        self._memories[mine._cdata] = (self._memories[memory._cdata][0], mine)
        return True

    def _of_tensor(self, value: Tensor) -> Formula:
        if value.is_meta:
            memory = self._memories[value.untyped_storage()._cdata][0]
            return (memory, *_window(value))
        if value.dim() == 0:
            number = value.item()
            return self.of(number)
        return _LEAF, self._leaf(value)

    def _number(self, formula: Formula) -> int:
        return self._numbers.setdefault(formula, len(self._numbers))

    def _note(self, made: Tensor, formula: Formula) -> None:
        memory = made.untyped_storage()  # held, so that no other takes its place
        self._memories[memory._cdata] = (self._number((formula, *_window(made))), memory)

    def _write(self, target: Any, formula: int) -> None:
        for value in _flat([target]):
            memory = value.untyped_storage()
            if not value.is_meta:
                continue
            if _is_whole(value):
                self._note(value, (formula, 0))
            else:
                before = self._memories[memory._cdata][0]
                after = self._number(("write", before, *_window(value), formula))
                self._memories[memory._cdata] = (after, memory)

    def _mirror(self, value: Tensor) -> Tensor:
        """A stand-in for a weight or constant."""
        if value.is_meta:
            return value
        formula = self._of_tensor(value)
        if formula not in self._mirrors:
            self._mirrors[formula] = _without_numbers(value)
            self._note(self._mirrors[formula], formula)
        return self._mirrors[formula]

    def _leaf(self, value: Tensor) -> int:
        """A number for the elements of a tensor: one for all that hold the same."""
        key = (value.untyped_storage()._cdata, *_window(value), value._version)
        if key not in self._known:
            self._known[key] = self._find_leaf(value.detach()), value
        return self._known[key][0]

    def _find_leaf(self, value: Tensor) -> int:
        head = value[(0,) * (value.dim() - 1)][:_HEAD].tolist() if value.numel() else []
        like = self._leaves.setdefault((*_window(value)[:2], value.dtype, str(head)), [])
        for other, leaf in like:
            if torch.equal(other, value):
                return leaf
        self._leaf_count += 1
        like.append((value, self._leaf_count))
        return self._leaf_count


def _flat(values: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _flat(value)
    return found


def _single(number: float) -> float:
    """A number as models compute with it; traces hold some in float32, some in double."""
    return ctypes.c_float(number).value


def _window(value: Tensor) -> tuple[Any, ...]:
    return tuple(value.shape), value.stride(), value.storage_offset(), value.dtype


def _without_numbers(value: Tensor) -> Tensor:
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="meta")


def _batch_norm(features: Tensor, *others: Any) -> Any:
    training = others[4]
    if training:
        return NotImplemented
    return torch.empty_like(features), features.new_empty(0), features.new_empty(0)


_SHORTCUTS: dict[Any, Any] = {
    torch.ops.aten.native_batch_norm.default: _batch_norm,
}
"""What nets call by the hundred, and torch takes apart to find the sizes of its results."""


def _is_whole(value: Tensor) -> bool:
    """Whether a tensor is a window on all of its memory, each element once."""
    reached = 1
    for stride, length in sorted(zip(value.stride(), value.shape, strict=True)):
        if length != 1 and stride != reached:
            return False
        reached *= length
    return reached * value.element_size() == value.untyped_storage().nbytes()


def _with_numbers(value: Tensor) -> Tensor:
    """Any tensor of a stand-in's sizes: only those are asked for."""
    if not value.is_meta:
        return value
    return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cpu")


_COPIES = frozenset({"aten::clone", "aten::_to_copy"})
_FILLED = frozenset({
    "aten::new_zeros", "aten::new_ones", "aten::new_full", "aten::zeros_like", "aten::ones_like",
    "aten::full_like",
})  # fmt: skip
"""What knows its elements, whatever the tensor it is made like."""


def _here(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments with the processor as the device: the code may ask where a stand-in lies."""
    return kwargs | {"device": torch.device("cpu")} if "device" in kwargs else kwargs
