"""A share of the training lesions: whole lesions, every class, nested, the same whatever the order."""

import itertools

import numpy as np
import pytest

from exp_tools.data.inputs.fraction import part_of_lesions

GROUPS = np.repeat([f"lesion {number}" for number in range(300)], 2)
LABELS = np.repeat(np.where(np.arange(300) < 200, 0, np.where(np.arange(300) < 290, 1, 2)), 2)


def test_each_class_has_its_share_of_whole_lesions():
    kept = part_of_lesions(GROUPS, LABELS, 0.07, seed=0)
    assert np.array_equal(kept[::2], kept[1::2])
    assert np.bincount(LABELS[kept]).tolist() == [2 * 14, 2 * 7, 2 * 1]  # 200 x 0.07, 90 x 0.07 up, 10 x 0.07 up
    assert part_of_lesions(GROUPS, LABELS, 1.0, seed=0).all()
    assert np.bincount(LABELS[part_of_lesions(GROUPS, LABELS, 1e-6, seed=0)]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_smaller_share_is_a_part_of_a_larger_one(seed):
    shares = [part_of_lesions(GROUPS, LABELS, fraction, seed) for fraction in (0.01, 0.05, 0.1, 0.5, 0.9)]
    for small, large in itertools.pairwise(shares):
        assert not (small & ~large).any()
        assert small.sum() < large.sum()


def test_the_seed_decides_and_the_order_of_the_images_does_not():
    kept = part_of_lesions(GROUPS, LABELS, 0.1, seed=0)
    assert set(GROUPS[kept]) != set(GROUPS[part_of_lesions(GROUPS, LABELS, 0.1, seed=1)])
    shuffled = np.random.default_rng(0).permutation(len(GROUPS))
    again = part_of_lesions(GROUPS[shuffled], LABELS[shuffled], 0.1, seed=0)
    assert set(GROUPS[shuffled][again]) == set(GROUPS[kept])
