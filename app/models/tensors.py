"""Holds what pickles say of tensors against the bytes that are there; counts parameters.

torch does not: a storage that claims more than its record holds is read beyond it, and so is a
tensor whose shape reaches beyond its storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from app.errors import Unprocessable
from app.models.code import ModuleClass
from app.models.pickled import Instance, Pickled, Tensor
from app.zip_directory import Entry

MAX_ELEMENTS = 2**40  # of one tensor; a stride of zero makes many of one


def check_tensors(name: str, pickled: Pickled, records: Mapping[str, Entry]) -> None:
    """Compare the tensors of the pickle `name` with the entries that hold their bytes.

    Raises:
        Unprocessable: missing_record, storage_size_mismatch, invalid_tensor.
    """
    seen = set()
    for storage in pickled.storages:
        if storage.key in seen:
            raise _mismatch(f"{name} reads {storage.key!a} twice instead of sharing it")
        seen.add(storage.key)
        if not storage.numel:
            continue
        record = records.get(storage.key)
        if record is None:
            raise Unprocessable(
                f"The bytes of a tensor are not in the file: {name}/{storage.key[:100]!a}. Save "
                "the model again.",
                code="missing_record",
            )
        claimed = storage.numel * storage.item_bytes
        if record.size_bytes != claimed:
            raise _mismatch(f"{record.name!a} has {record.size_bytes} bytes instead of {claimed}")
    for tensor in pickled.tensors:
        _check_reach(name, tensor)


def count_parameters(top: Instance, classes: Mapping[str, ModuleClass]) -> int:
    """Return the elements of all parameters, shared ones once."""
    tensors = set()
    seen: set[int] = set()
    waiting = [top]
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        known = classes.get(module.cls)
        for name, value in module.attributes.items():
            if isinstance(value, Instance):
                waiting.append(value)
            elif known and name in known.parameters and isinstance(value, Tensor):
                tensors.add(value)
    return sum(prod(tensor.shape) for tensor in tensors)


def _check_reach(name: str, tensor: Tensor) -> None:
    last = tensor.offset - 1
    if 0 not in tensor.shape:
        steps = zip(tensor.shape, tensor.strides, strict=True)
        last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if last >= tensor.storage.numel or prod(tensor.shape) > MAX_ELEMENTS:
        raise Unprocessable(
            f"A tensor of {name} with the shape {list(tensor.shape)[:20]} reaches beyond its "
            f"{tensor.storage.numel} elements. Save the model again.",
            code="invalid_tensor",
        )


def _mismatch(what: str) -> Unprocessable:
    return Unprocessable(
        f"The weights of the model do not fit its description: {what}. Save the model again.",
        code="storage_size_mismatch",
    )
