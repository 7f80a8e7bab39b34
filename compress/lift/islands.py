"""Where a model cannot be lifted, and stays TorchScript."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A module of the original, or one node in its code.

    Attributes:
        module: Dotted name; empty for the model itself.
        node: The way to the node through methods and blocks; empty for the whole module.
    """

    module: str
    node: str = ""


class IslandNeeded(Exception):
    """The walk must begin anew with one more island; never leaves `lift`.

    Attributes:
        place: What stays as it is.
        reason: Why, as a sentence.
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason
