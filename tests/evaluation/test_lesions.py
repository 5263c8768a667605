"""A lesion's images count as one: their probabilities are averaged."""

import numpy as np
import pandas as pd
import pytest

from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import lesion_view

CLASSES = ["bcc", "mel"]


def table(rows):
    frame = pd.DataFrame(rows, columns=["lesion_id", "group_id", "dx", "p_mel"])
    frame["p_bcc"] = 1 - frame["p_mel"]
    return frame.assign(logit_bcc=0.0, logit_mel=0.0)


def test_probabilities_are_averaged_in_order_of_the_first_image():
    probabilities, labels, groups, predicted = lesion_view(
        table(
            [
                ("L9", "G1", "mel", 0.9),
                ("L2", "G2", "bcc", 0.3),
                ("L9", "G1", "mel", 0.2),
                ("L9", "G1", "mel", 0.1),
                ("L5", "G1", "mel", 1.0),
            ]
        ),
        CLASSES,
    )
    assert probabilities == pytest.approx(np.array([[0.6, 0.4], [0.7, 0.3], [0.0, 1.0]]))
    assert labels.tolist() == [1, 0, 1]
    assert predicted.tolist() == [0, 0, 1]
    assert groups.tolist() == ["G1", "G2", "G1"]  # near-duplicates of other lesions stay in one group


def test_agrees_with_pandas_and_one_image_a_lesion_changes_nothing():
    rng = np.random.default_rng(0)
    lesion = rng.integers(60, size=200)
    dx = np.array(CLASSES)[np.arange(60) % 2][lesion]
    frame = table(list(zip(lesion.astype(str), lesion.astype(str), dx, rng.random(200), strict=True)))
    probabilities, labels, groups, _ = lesion_view(frame, CLASSES)
    expected = frame.groupby("lesion_id").agg({"p_bcc": "mean", "p_mel": "mean", "dx": "first"}).loc[groups]
    assert probabilities == pytest.approx(expected[["p_bcc", "p_mel"]].to_numpy(), abs=1e-12)
    assert np.array(CLASSES)[labels].tolist() == expected["dx"].tolist()
    single = frame.assign(lesion_id=np.arange(200).astype(str))
    assert lesion_view(single, CLASSES)[0] == pytest.approx(frame[["p_bcc", "p_mel"]].to_numpy(), abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("L1", "G1", "mel", 0.5), ("L1", "G1", "bcc", 0.5)], "Lesion 'L1' has the diagnoses mel, bcc"),
        ([("L1", "G1", "mel", 0.5), ("L1", "G2", "mel", 0.5)], "Lesion 'L1' has the groups G1, G2"),
        ([("L1", "G1", "nv", 0.5)], "does not know: nv"),
        ([], "set is empty"),
    ],
)
def test_bad_input_is_named(rows, message):
    with pytest.raises(UserError, match=message):
        lesion_view(table(rows), CLASSES)
