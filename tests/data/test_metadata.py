"""Age, sex and site as numbers: statistics by hand, what is missing, what was never seen."""

import json

import numpy as np
import pandas as pd
import pytest

from exp_tools.data.inputs.metadata import Vocabulary, encode, fit_vocabulary


def table(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["age", "sex", "localization"])


TRAIN = table(
    (30.0, "male", "back"), (50.0, "female", "face"), (np.nan, "unknown", "back"), (40.0, "male", "unknown"),
    (80.0, "female", "abdomen"),
)  # fmt: skip


def test_the_vocabulary_by_hand():
    # known ages 30, 40, 50, 80: mean 50, squared distances 400 + 100 + 0 + 900 = 1400, a quarter of it 350, median 45
    vocabulary = fit_vocabulary(TRAIN)
    assert vocabulary.age_mean == 50
    assert vocabulary.age_std == pytest.approx(350**0.5)
    assert vocabulary.age_median == 45
    assert vocabulary.sex == ("female", "male", "unknown")
    assert vocabulary.localization == ("abdomen", "back", "face", "unknown")


def test_encoding_by_hand():
    vocabulary = Vocabulary(50.0, 20.0, 45.0, ("female", "male", "unknown"), ("abdomen", "back"))
    rows = table((70.0, "male", "back"), (np.nan, "unknown", "abdomen"), (50.0, "", "scalp"), (0.0, np.nan, np.nan))
    encoded = encode(rows, vocabulary)
    assert encoded.dtype == np.float32
    # a sex that is missing is `unknown`, number 2; a site never seen, without `unknown` in train, is number 2, the next
    assert encoded.tolist() == [[1.0, 1, 1], [-0.25, 2, 0], [0.0, 2, 2], [-2.5, 2, 2]]


def test_ages_that_say_nothing():
    nobody = table((np.nan, "male", "back"), (np.nan, "male", "back"))
    assert fit_vocabulary(nobody) == Vocabulary(0.0, 1.0, 0.0, ("male",), ("back",))
    assert encode(nobody, fit_vocabulary(nobody)).tolist() == [[0, 0, 0], [0, 0, 0]]
    alike = table((40.0, "male", "back"), (40.0, "male", "back"))
    assert fit_vocabulary(alike).age_std == 1.0
    assert encode(table((43.0, "male", "back")), fit_vocabulary(alike)).tolist() == [[3, 0, 0]]


def test_no_row_gives_no_row():
    assert encode(TRAIN.iloc[:0], fit_vocabulary(TRAIN)).shape == (0, 3)


def test_only_the_fitted_rows_matter():
    vocabulary = fit_vocabulary(TRAIN)
    rows = TRAIN.iloc[::-1].reset_index(drop=True)
    np.testing.assert_array_equal(encode(rows, vocabulary), encode(TRAIN, vocabulary)[::-1])


def test_it_survives_json_exactly():
    vocabulary = fit_vocabulary(TRAIN)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.as_dict()))) == vocabulary
