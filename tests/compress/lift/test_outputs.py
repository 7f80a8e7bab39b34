"""Named tuples come out as the original's: by its name and fields."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from compress.lift import lift
from compress.lift.outputs import as_original


class Answer(NamedTuple):
    logits: Tensor
    loss: Tensor


class Tagged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Answer:
        y = self.layer(x)
        return Answer(y, y.sum())


def test_two_models_of_one_process_may_name_their_answers_alike() -> None:
    class Other(NamedTuple):
        scores: Tensor

    Other.__name__ = "Answer"
    x = torch.ones(2, 3)
    lifted = lift(torch.jit.script(Tagged().eval()), [x]).graph_module
    first = torch.jit.script(lifted)(x)
    assert first._fields == ("logits", "loss")
    assert type(first).__name__ == "Answer"
    made = [as_original((x,), Other(x)), as_original((x, x), Answer(x, x))]
    assert [one._fields for one in made] == [("scores",), ("logits", "loss")]
    assert len({type(one).__module__ for one in made}) == 2
    again = as_original((x,), Other(x))
    assert type(again).__module__ == type(made[0]).__module__
