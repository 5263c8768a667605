"""Age, sex and lesion site as numbers, by a vocabulary that is fitted on train and stored with the model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Vocabulary:
    """Statistics and values of the train split's metadata.

    age_mean, age_std : years, over the known ages (population deviation; 1 where all are equal)
    age_median : years, stands for a missing age
    sex, localization : the values, sorted; `unknown` is one of them where train has it
    """

    age_mean: float
    age_std: float
    age_median: float
    sex: tuple[str, ...]
    localization: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; from_dict takes it back."""
        return asdict(self) | {"sex": list(self.sex), "localization": list(self.localization)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Vocabulary":
        return cls(**{**content, "sex": tuple(content["sex"]), "localization": tuple(content["localization"])})


def fit_vocabulary(table: pd.DataFrame) -> Vocabulary:
    """Statistics and values of label rows, which should be the train split's only.

    Parameters
    ----------
    table : columns age (years, NaN where missing), sex and localization (text; nothing means unknown)

    Returns
    -------
    The vocabulary; where no age is known the mean and median are 0 and the deviation is 1
    """
    ages = table["age"].dropna().to_numpy(dtype=float)
    mean, deviation, median = (ages.mean(), ages.std(), np.median(ages)) if len(ages) else (0.0, 1.0, 0.0)
    return Vocabulary(
        age_mean=float(mean),
        age_std=float(deviation) or 1.0,
        age_median=float(median),
        sex=tuple(sorted(set(_words(table["sex"])))),
        localization=tuple(sorted(set(_words(table["localization"])))),
    )


def encode(table: pd.DataFrame, vocabulary: Vocabulary) -> np.ndarray:
    """Metadata of label rows as numbers.

    Parameters
    ----------
    table : N rows with the columns of fit_vocabulary

    Returns
    -------
    float32 [N, 3]: age as (age - mean) / deviation, a missing one as the median; the place of sex and of localization
    among the vocabulary's values. A value that is not among them has the place of `unknown`, or the one after the last
    where train had no `unknown`.
    """
    ages = table["age"].astype(float).fillna(vocabulary.age_median)
    columns = [
        (ages - vocabulary.age_mean) / vocabulary.age_std,
        _places(table["sex"], vocabulary.sex),
        _places(table["localization"], vocabulary.localization),
    ]
    return np.column_stack(columns).astype(np.float32)


def _words(column: pd.Series) -> pd.Series:
    return column.fillna(UNKNOWN).replace("", UNKNOWN)


def _places(column: pd.Series, values: tuple[str, ...]) -> pd.Series:
    places = {value: place for place, value in enumerate(values)}
    return _words(column).map(places).fillna(places.get(UNKNOWN, len(values)))
