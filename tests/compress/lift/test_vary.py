"""Inputs of other sizes: like the example, with axes of one length varying together."""

from __future__ import annotations

import torch

from compress.lift.vary import Axes, Sizes, other_batch_sizes, parts_of, resized, shorter
from compress.structure import tensors_in


def test_the_batch_is_the_first_axis_where_all_inputs_share_its_length() -> None:
    batch = Sizes([{"a": torch.ones(4, 3)}, [torch.ones(4)], 7]).batch()
    assert batch is not None
    assert (batch.length, batch.members) == (4, ((0, 0), (1, 0)))
    assert Sizes([torch.ones(4), torch.ones(2, 9)]).batch() is None
    assert Sizes([torch.tensor(1.0)]).batch() is None
    assert other_batch_sizes(2) == [3, 1]


def test_axes_of_one_length_vary_together_and_single_ones_never() -> None:
    tokens, mask = torch.ones(2, 16), torch.ones(2, 1, 16)
    (axes,) = Sizes([tokens, mask]).others()
    assert (axes.length, axes.members) == (16, ((0, 1), (1, 2)))
    nodes, edges = torch.ones(5, 8), torch.ones(2, 9)
    assert [axes.length for axes in Sizes([nodes, edges]).others()] == [5, 8, 2, 9]


def test_lengths_that_are_equal_by_chance_are_told_apart() -> None:
    frames, state = torch.ones(2, 12), torch.ones(2, 2, 8)
    same = Sizes([frames, state], fixed={(1, 0)}).of_length(2)
    assert same == Axes(2, ((0, 0), (1, 1)))
    tried = [axes.members for axes in parts_of(Axes(2, ((0, 0), (1, 0), (1, 1))))]
    assert tried[0] == ((0, 0), (1, 0), (1, 1))
    assert ((0, 0), (1, 1)) in tried


def test_half_of_an_image_stays_a_multiple_of_32() -> None:
    assert [shorter(length) for length in (224, 64, 50, 7, 1)] == [96, 32, 24, 3, 1]


def test_floats_spread_as_in_the_example() -> None:
    image = torch.randn(2, 3, 64, 50) * 5 + 1
    batch = Sizes([image]).batch()
    assert batch is not None
    (given,) = resized([image], [(batch, 6)], 1)
    assert given[0].shape == (6, 3, 64, 50)
    assert 4 < float(given[0].std()) < 6
    assert 0 < float(given[0].mean()) < 2


def test_integers_come_from_the_example_then_in_its_order_then_within_the_new_length() -> None:
    tokens, lengths = torch.arange(12).reshape(2, 6), torch.tensor([6, 4])
    batch = Sizes([tokens, lengths]).batch()
    time = Sizes([tokens, lengths]).others()[0]
    assert batch is not None
    drawn, ordered, bounded, pointing = resized([tokens, lengths], [(batch, 3), (time, 2)], 1)
    assert all(value.shape[0] == 3 for given in (drawn, ordered) for value in given)
    assert set(drawn[1].tolist()) <= {4, 6}
    assert ordered[1].tolist() == [6, 6, 4]
    assert ordered[0].tolist() == [[0, 1], [0, 1], [6, 7]]
    assert bounded[1].tolist() == [2, 2, 2]
    assert pointing[0].max() <= 1


def test_what_is_no_tensor_stays() -> None:
    batch = Sizes([torch.ones(2)]).batch()
    assert batch is not None
    (given,) = resized([torch.ones(2), 16000, None, "a"], [(batch, 3)], 1)
    assert given[1:] == [16000, None, "a"]
    assert tensors_in(given)[0].shape == (3,)
