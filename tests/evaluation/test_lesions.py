"""A lesion's images count as one: their probabilities are averaged."""

import numpy as np
import pandas as pd
import pytest

from exp_tools.errors import UserError
from exp_tools.evaluation.prediction_sets import fit_sets, read_set_column
from exp_tools.evaluation.predictions import decisions, lesion_view, prediction_table, read_predictions
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import write_csv

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


@pytest.mark.parametrize("classes", [["0", "1"], ["01", "02"], ["1.0", "2.0"], ["true", "false"], ["NA", "nan"]])
def test_classes_that_look_like_numbers_are_read_as_they_were_written(tmp_path, classes):
    ids = [f"i{number}" for number in range(60)]
    truth = np.arange(60) % 2
    labels = pd.DataFrame({"image_id": ids, "lesion_id": ids, "group_id": ids, "source": "s"})
    labels = labels.assign(dx=np.array(classes)[truth])
    logits, plain = 4.0 * np.eye(2)[truth], Calibration.none(2)
    sets = fit_sets("lac", 0.9, classes, plain.probabilities(logits), truth, labels["lesion_id"])
    write_csv(tmp_path / "p.csv", prediction_table(labels, "test", logits, classes, plain, sets))
    found, names = read_predictions(tmp_path / "p.csv")
    assert names == classes
    assert (lesion_view(found, classes)[3] == truth).all()
    assert (decisions(found, classes) == truth).all()
    assert read_set_column(found["prediction_set"], classes)[range(60), truth].all()
