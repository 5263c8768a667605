"""Candidates without key points, and what age, sex and site say of a pair."""

import numpy as np
import pandas as pd

from exp_tools.data.duplicates import search
from exp_tools.data.duplicates.neighbours import (
    LOOK,
    as_facts,
    blocks_of,
    describe_look,
    facts_agree,
    nearest_in_block,
    standardise,
    whiten,
)

FACTS = as_facts(
    pd.DataFrame(
        {
            "age": ["50", "50.0", "55", "", "", "50"],
            "sex": ["male", "Male ", "male", "unknown", "", "male"],
            "localization": ["back", "back", "back", "unknown", "", "unknown"],
        }
    )
)


def test_two_equal_facts_and_none_that_differs_agree():
    assert list(blocks_of(FACTS)) == [0, 0, 1, 2, 2, 3]
    pairs = np.array([(0, 1), (0, 2), (3, 4), (0, 5), (0, 3)])
    assert list(facts_agree(FACTS, pairs)) == [True, False, False, True, False]
    assert list(as_facts(pd.DataFrame(index=range(2))).to_numpy().ravel()) == [""] * 6


def test_the_nearest_are_those_of_the_block():
    vectors = standardise(np.array([[0, 0], [0, 0.1], [5, 5], [5, 5.2], [0.1, 0]], float))
    pairs, likeness = nearest_in_block(vectors, np.array([0, 0, 0, 0, 1]), 1)
    assert pairs.tolist() == [[0, 1], [2, 3]]
    assert (likeness > 0.99).all()
    assert nearest_in_block(vectors, np.arange(5), 3)[0].shape == (0, 2)


def test_whitening_weighs_every_direction_alike():
    """A column with large values says nothing, six small ones are the same in both pictures of a pair."""
    rng = np.random.default_rng(0)
    own = np.repeat(rng.normal(0, 0.1, (100, 6)), 2, axis=0)
    values = np.column_stack([rng.normal(0, 100, 200), own])
    right = {(2 * place, 2 * place + 1) for place in range(100)}

    def hits(vectors: np.ndarray) -> int:
        return len(right & set(map(tuple, nearest_in_block(vectors, np.zeros(200, int), 1)[0].tolist())))

    assert hits((values / np.linalg.norm(values, axis=1)[:, None]).astype(np.float32)) < 50 < hits(whiten(values))


def test_a_look_does_not_depend_on_which_way_up_a_picture_is():
    rng = np.random.default_rng(0)
    picture = np.repeat(np.repeat(rng.integers(0, 255, (45, 60, 3), dtype=np.uint8), 5, 0), 5, 1)
    look = describe_look(picture)
    assert look.shape == (LOOK,)
    np.testing.assert_allclose(describe_look(picture[::-1, ::-1].copy()), look, atol=0.1)
    other = np.repeat(np.repeat(rng.integers(0, 120, (45, 60, 3), dtype=np.uint8), 5, 0), 5, 1)
    assert np.abs(describe_look(other) - look).max() > 5


def test_fewer_inliers_are_enough_where_the_facts_agree():
    rows = [(0, second, inliers, 20.0, 0.0, 1.0, False, 300) for second, inliers in ((1, 8), (2, 8), (3, 12), (5, 7))]
    table = search._table(rows, [bytes([place]) for place in range(6)], FACTS, {})
    assert list(table["agrees"]) == [True, False, False, True]
    assert list(table["accepted"]) == [True, False, True, False]


def test_the_most_similar_pairs_are_listed_whatever_their_key_points_say():
    table = search._table([], [bytes([place]) for place in range(6)], FACTS, {(0, 1): 0.9, (2, 3): 0.5})
    assert table[["first", "second", "inliers", "similarity", "accepted"]].to_numpy().tolist() == [
        [0, 1, 0, 0.9, False],
        [2, 3, 0, 0.5, False],
    ]
