"""Mixing is timm's where both can be compared, repeats itself from its four numbers, and leaves padding out."""

import numpy as np
import pytest
import torch
from timm.data import mixup as theirs
from timm.data.mixup import Mixup

from exp_tools.training.losses import one_hot, weighted_targets
from exp_tools.training.mixup import cut_box, mix

SIZE = 16
PLACE = {"seed": 3, "epoch": 2, "step": 1, "rank": 0}
ALPHAS = [{"mixup": 0.8, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}]


def batch(count=6, smoothing=0.0):
    """Random images, and label i for image i."""
    images = torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return images, weighted_targets(one_hot(torch.arange(count), count), torch.ones(count), smoothing)


def used_cutmix(step, **alphas):
    """Whether a step pasted: black and white images stay black and white."""
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, SIZE, SIZE)
    (mixed,), _ = mix([images], torch.eye(2), **alphas, **{**PLACE, "step": step})
    return bool(((mixed == 0) | (mixed == 1)).all())


def test_mixup_is_timms(monkeypatch):
    images, targets = batch(smoothing=0.1)
    (mixed,), mixed_targets = mix([images], targets, mixup=0.8, cutmix=0.0, **PLACE)
    kept = ((mixed_targets[0, 0] - 0.1 / 6) / 0.9).item()
    reference = Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=6)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (kept, False))
    expected, expected_targets = reference(images.clone(), torch.arange(6))
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(mixed_targets, expected_targets)
    assert 0 < kept < 1


def test_cutmix_is_timms(monkeypatch):
    images, targets = batch()
    (mixed,), mixed_targets = mix([images], targets, mixup=0.0, cutmix=1.0, **PLACE)
    rows, columns = (torch.nonzero((mixed != images)[0, 0].any(axis)).flatten() for axis in (1, 0))
    box = (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    kept = 1 - len(rows) * len(columns) / SIZE**2
    reference = Mixup(cutmix_alpha=1.0, mixup_alpha=0.0, label_smoothing=0.0, num_classes=6)
    monkeypatch.setattr(reference, "_params_per_batch", lambda: (kept, True))
    monkeypatch.setattr(theirs, "cutmix_bbox_and_lam", lambda *_, **__: (box, kept))
    expected, expected_targets = reference(images.clone(), torch.arange(6))
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(mixed_targets, expected_targets)
    assert 0 < kept < 1


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("size", [16, 31])
def test_the_box_is_timms_for_the_same_centre(monkeypatch, size, kept):
    for seed in range(20):
        centre = iter(np.random.default_rng(seed).integers(0, size, 2))
        monkeypatch.setattr(np.random, "randint", lambda *_, centre=centre, **__: next(centre))
        top, bottom, left, right = theirs.rand_bbox((3, size, size), kept)
        rows, columns = cut_box(size, kept, np.random.default_rng(seed))
        assert (rows.stop - rows.start, columns.stop - columns.start) == (bottom - top, right - left)
        if rows.stop > rows.start and columns.stop > columns.start:
            assert (rows, columns) == (slice(top, bottom), slice(left, right))


@pytest.mark.parametrize("alphas", ALPHAS)
def test_targets_say_how_much_of_each_image_is_there(alphas):
    images = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, SIZE, SIZE)  # image i is 1 in channel i, and 0 elsewhere
    for step in range(20):
        (mixed,), targets = mix([images], torch.eye(4), **alphas, **{**PLACE, "step": step})
        torch.testing.assert_close(mixed.mean((2, 3)), targets)
        torch.testing.assert_close(targets.sum(0), torch.ones(4))


@pytest.mark.parametrize("alphas", ALPHAS)
def test_padding_is_neither_mixed_in_nor_filled(alphas):
    images, targets = batch(5)
    images[3:], targets[3:] = 99.0, 0.0
    (mixed,), mixed_targets = mix([images], targets, **alphas, **PLACE)
    # partners are 0 and 4, 1 and 3, and 2 with itself: each pair has padding in it
    assert torch.equal(mixed, images)
    assert torch.equal(mixed_targets, targets)
    images, targets = batch(5)
    images[4], targets[4] = 99.0, 0.0
    (mixed,), mixed_targets = mix([images], targets, **alphas, **PLACE)
    assert torch.equal(mixed[[0, 2, 4]], images[[0, 2, 4]])
    assert torch.equal(mixed_targets[[0, 2, 4]], targets[[0, 2, 4]])
    for row in (1, 3):
        assert not torch.equal(mixed[row], images[row])
        assert mixed_targets[row, 1] > 0 < mixed_targets[row, 3]
    torch.testing.assert_close(mixed_targets.sum(0), targets.sum(0))


@pytest.mark.parametrize("alphas", ALPHAS)
def test_a_draw_depends_on_the_four_numbers_and_touches_no_generator(alphas):
    images, targets = batch()
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    (first,), _ = mix([images], targets, **alphas, **PLACE)
    (again,), _ = mix([images], targets, **alphas, **PLACE)
    assert torch.equal(first, again)
    for number in PLACE:
        (other,), _ = mix([images], targets, **alphas, **{**PLACE, number: PLACE[number] + 1})
        assert not torch.equal(first, other), number
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize("alphas", ALPHAS)
def test_the_given_batch_its_layout_and_its_precision_stay(alphas):
    images, targets = batch()
    images = images.to(torch.bfloat16, memory_format=torch.channels_last)
    before = images.clone(), targets.clone()
    (mixed,), mixed_targets = mix([images], targets, **alphas, **PLACE)
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert mixed_targets.dtype == torch.float32


def test_a_fair_coin_chooses_where_both_are_on():
    assert not any(used_cutmix(step, mixup=1.0, cutmix=0.0) for step in range(20))
    assert all(used_cutmix(step, mixup=0.0, cutmix=1.0) for step in range(20))
    pasted = sum(used_cutmix(step, mixup=1.0, cutmix=1.0) for step in range(400))
    assert 150 < pasted < 250  # five standard deviations


def test_alpha_is_that_of_the_beta_distribution():
    for alpha in (0.2, 1.0, 5.0):
        kept = [
            mix([torch.zeros(2, 3, 1, 1)], torch.eye(2), mixup=alpha, cutmix=0.0, **{**PLACE, "step": step})[1][0, 0]
            for step in range(2000)
        ]
        assert np.mean(kept) == pytest.approx(0.5, abs=0.05)
        assert np.var(kept) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_without_alphas_nothing_happens():
    images, targets = batch()
    (mixed,), mixed_targets = mix([images], targets, mixup=0.0, cutmix=0.0, **PLACE)
    assert mixed is images
    assert mixed_targets is targets


@pytest.mark.parametrize("alphas", ALPHAS)
def test_metadata_come_with_the_partners_and_the_share_that_is_in_the_picture(alphas):
    images = torch.eye(5).view(5, 5, 1, 1).expand(5, 5, SIZE, SIZE)  # image i is 1 in channel i, and 0 elsewhere
    targets = torch.eye(5)
    targets[1] = 0  # padding, whose partner is image 3
    metadata = torch.arange(15.0).view(5, 3)
    (mixed, own, partners, kept), mixed_targets = mix([images, metadata], targets, **alphas, **PLACE)
    assert torch.equal(own, metadata)
    assert torch.equal(partners, metadata.flip(0))
    assert kept.shape == (5, 1)
    assert (kept[[1, 3]] == 1).all()
    assert 0 < kept[0] < 1
    shares = mixed.mean((2, 3)).diagonal()
    torch.testing.assert_close(kept[[0, 1, 3, 4], 0], shares[[0, 1, 3, 4]])  # image 2 is its own partner
    torch.testing.assert_close(kept[[0, 4], 0], mixed_targets.diagonal()[[0, 4]])
