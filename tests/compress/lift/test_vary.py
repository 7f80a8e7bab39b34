"""Inputs of other sizes: like the example, with axes of one length varying together."""

from __future__ import annotations

import torch

from compress.lift.vary import batch_axes, other_axes, other_batch_sizes, resized, shorter
from compress.structure import tensors_in


def test_the_batch_is_the_first_axis_where_all_inputs_share_its_length() -> None:
    batch = batch_axes([{"a": torch.ones(4, 3)}, [torch.ones(4)], 7])
    assert batch is not None
    assert (batch.length, batch.members) == (4, ((0, 0), (1, 0)))
    assert batch_axes([torch.ones(4), torch.ones(2, 9)]) is None
    assert batch_axes([torch.tensor(1.0)]) is None
    assert other_batch_sizes(2) == [3, 1]


def test_axes_of_one_length_vary_together_and_single_ones_never() -> None:
    tokens, mask = torch.ones(2, 16), torch.ones(2, 1, 16)
    (axes,) = other_axes([tokens, mask])
    assert (axes.length, axes.members) == (16, ((0, 1), (1, 2)))
    nodes, edges = torch.ones(5, 8), torch.ones(2, 9)
    assert [axes.length for axes in other_axes([nodes, edges])] == [5, 8, 2, 9]


def test_half_of_an_image_stays_a_multiple_of_32() -> None:
    assert [shorter(length) for length in (224, 64, 50, 7, 1)] == [96, 32, 24, 3, 1]


def test_floats_spread_as_in_the_example() -> None:
    image = torch.randn(2, 3, 64, 50) * 5 + 1
    batch = batch_axes([image])
    assert batch is not None
    (given,) = resized([image], [(batch, 6)], 1)
    assert given[0].shape == (6, 3, 64, 50)
    assert 4 < float(given[0].std()) < 6
    assert 0 < float(given[0].mean()) < 2


def test_integers_come_from_the_example_then_in_its_order_then_within_the_new_length() -> None:
    tokens, lengths = torch.arange(12).reshape(2, 6), torch.tensor([6, 4])
    batch = batch_axes([tokens, lengths])
    time = other_axes([tokens, lengths])[0]
    assert batch is not None
    drawn, ordered, bounded = resized([tokens, lengths], [(batch, 3), (time, 2)], 1)
    assert all(value.shape[0] == 3 for given in (drawn, ordered) for value in given)
    assert set(drawn[1].tolist()) <= {4, 6}
    assert ordered[1].tolist() == [6, 6, 4]
    assert ordered[0].tolist() == [[0, 1], [0, 1], [6, 7]]
    assert bounded[1].tolist() == [2, 2, 2]


def test_what_is_no_tensor_stays() -> None:
    batch = batch_axes([torch.ones(2)])
    assert batch is not None
    (given,) = resized([torch.ones(2), 16000, None, "a"], [(batch, 3)], 1)
    assert given[1:] == [16000, None, "a"]
    assert tensors_in(given)[0].shape == (3,)
