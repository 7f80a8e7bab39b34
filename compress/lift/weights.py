"""The original's modules, parameters and buffers: what they are called, and this graph's copies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.lift.values import ModuleRef, Symbol

Identity = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]


class Weights:
    """The weights of one walk: copied, so the original stays as it is; one copy for all names.

    Attributes:
        is_frozen: Whether the model was frozen: its weights are constants of its code.
        frozen_names: Constants of a layer to the name that it got.
        modules: Dotted name to module of the original.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.is_frozen = not any(True for _ in module.parameters())
        self.frozen_names: dict[tuple[int, ...], str] = {}
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._names = {_identity(value): name for name, value in self._parameters.items()}
        self._copies: dict[Identity, Tensor] = {}

    def name_in(self, owner: ModuleRef, name: str, symbol: Symbol) -> str:
        """Path of an attribute; of two names of one tensor, that in the module being walked."""
        assert symbol.path is not None
        path = owner.child_path(name)
        held = owner.module._c.getattr(name) if owner.module._c.hasattr(name) else None
        if isinstance(held, Tensor) and self.own(path, held) is symbol.value:
            return path
        return symbol.path

    def is_leaf(self, path: str, attributes: frozenset[str]) -> bool:
        """Whether an original module has no submodules, and no parameters beside these."""
        module = self.modules.get(path)
        if module is None:
            return False
        names = {name for name, _ in module.named_parameters()}
        return names <= attributes and not any(True for _ in module.named_children())

    def buffer_beside(self, path: str, name: str) -> Tensor | None:
        """This graph's copy of another buffer of the original module at `path`, if it has one."""
        module = self.modules.get(path)
        value = None if module is None else dict(module.named_buffers()).get(name)
        return None if value is None else self.own(f"{path}.{name}", value)

    def attribute(self, path: str, value: Tensor) -> Symbol:
        """A parameter, buffer or tensor attribute; copied, so the original stays as it is."""
        if path not in self._parameters:  # an attribute may hold a parameter under another name
            path = self._names.get(_identity(value), path)
        return Symbol(self.own(path, value), path=path)

    def own(self, path: str, value: Tensor) -> Tensor:
        """This graph's copy of a tensor of the original; one copy for all names of one tensor."""
        key = _identity(value)
        if key not in self._copies:
            mine = value.detach().clone()
            if key in self._names:
                # deployed files are often frozen; what is lifted must be able to learn again
                mine = nn.Parameter(mine, requires_grad=mine.is_floating_point())
            self._copies[key] = mine
        return self._copies[key]

    def own_constant(self, value: Tensor) -> Tensor:
        """A constant of a frozen model as the parameter that it was."""
        if value.is_floating_point():
            self._names.setdefault(_identity(value), "")
        return self.own("", value)


def _identity(value: Tensor) -> Identity:
    return (
        value.data_ptr() or id(value),
        int(value.storage_offset()),
        value.shape,
        value.stride(),
        value.dtype,
    )
