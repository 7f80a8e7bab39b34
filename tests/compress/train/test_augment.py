"""Random changes are those of their seed, and change what they should."""

from __future__ import annotations

import pytest
import torch

from compress.errors import InvalidSpec
from compress.train.augment import augment, check_augmentations
from compress.train.objective import Batch

IMAGES = torch.rand(16, 3, 8, 10, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(16)


def changed(*kinds: str, seed: int = 0) -> Batch:
    return augment(Batch([IMAGES, IDS], IDS), kinds, (seed, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["flip", "crop", "noise", "mixup"])
def test_the_same_seed_gives_the_same_change(kind: str) -> None:
    one, again, other = changed(kind), changed(kind), changed(kind, seed=1)
    assert torch.equal(one.inputs[0], again.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[0])
    assert not torch.equal(one.inputs[0], IMAGES)
    assert torch.equal(one.inputs[1], IDS)  # integers are no images


def test_a_flip_turns_some_images_left_to_right() -> None:
    (images, _) = changed("flip").inputs
    turned = [torch.equal(one, old.flip(2)) for one, old in zip(images, IMAGES, strict=True)]
    kept = [torch.equal(one, old) for one, old in zip(images, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 2 < sum(turned) < 14


def test_a_crop_moves_images_by_an_eighth_at_most() -> None:
    (images, _) = changed("crop").inputs
    assert images.shape == IMAGES.shape
    for one, old in zip(images, IMAGES, strict=True):
        padded = torch.nn.functional.pad(old, (2, 2, 1, 1))
        places = [
            torch.equal(one, padded[:, top : top + 8, left : left + 10])
            for top in range(3)
            for left in range(5)
        ]
        assert sum(places) == 1


def test_noise_is_small() -> None:
    (images, _) = changed("noise").inputs
    assert float((images - IMAGES).std()) == pytest.approx(0.05 * float(IMAGES.std()), rel=0.05)


def test_mixup_mixes_samples_and_keeps_both_labels() -> None:
    batch = changed("mixup")
    assert batch.other_label is not None
    expected = batch.mixed * IMAGES + (1 - batch.mixed) * IMAGES[batch.other_label]
    torch.testing.assert_close(batch.inputs[0], expected)
    assert torch.equal(batch.label, IDS)  # type: ignore[arg-type]


def test_what_is_no_image_is_not_flipped() -> None:
    check_augmentations(["flip", "noise", "mixup"], [IMAGES])
    with pytest.raises(InvalidSpec, match=r"inputs are \[16\]"):
        check_augmentations(["flip"], [IDS])
    with pytest.raises(InvalidSpec, match="'mixup' needs inputs that are all floats"):
        check_augmentations(["mixup"], [IMAGES, IDS])
    with pytest.raises(InvalidSpec, match="'noise' needs float inputs"):
        check_augmentations(["noise"], [IDS])
