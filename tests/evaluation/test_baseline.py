"""The colour baseline: its features by hand, its probabilities, and its score on real images."""

import numpy as np
import pandas as pd
import pytest
from helpers.project import ROOT
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from exp_tools.errors import UserError
from exp_tools.evaluation.baseline import colour_baseline, colour_features
from exp_tools.evaluation.metrics.classification import headline_metrics

REAL = ROOT / "../shared/data/ham10000-mini"


def coloured(labels, seed=0, size=8):
    """Images whose red grows with the label."""
    noise = np.random.default_rng(seed).integers(0, 30, (len(labels), size, size, 3))
    noise[..., 0] += 60 * np.asarray(labels)[:, None, None]
    return noise.astype(np.uint8)


def test_features_are_the_mean_colours_of_nine_cells():
    image = np.zeros((1, 6, 6, 3), np.uint8)
    image[0, 0:2, 2:4, 1] = 100  # the middle cell of the top row, green
    image[0, 5, 5] = (4, 8, 12)  # a quarter of the last cell
    features = colour_features(image).reshape(9, 3)
    expected = np.zeros((9, 3))
    expected[1, 1], expected[8] = 100, (1, 2, 3)
    assert (features == expected).all()


@pytest.mark.parametrize("size", [7, 64, 65])
def test_features_of_a_size_that_three_does_not_divide(size):
    images = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    edges = [0, round(size / 3), round(2 * size / 3), size]
    for image, row in zip(images, colour_features(images).reshape(2, 3, 3, 3), strict=True):
        for i, j in np.ndindex(3, 3):
            cell = image[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            assert row[i, j] == pytest.approx(cell.mean(axis=(0, 1)))


def test_features_of_chosen_rows_of_a_memory_mapped_file(tmp_path):
    images = coloured([0, 1, 2, 3])
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert (colour_features(mapped, [3, 1]) == colour_features(images)[[3, 1]]).all()
    assert colour_features(mapped, []).shape == (0, 27)


def test_colours_that_tell_the_class_are_learned():
    labels = np.arange(90) % 3
    probabilities = colour_baseline(coloured(labels), labels, np.arange(60), np.arange(60, 90), 3)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(30))
    assert (probabilities.argmax(axis=1) == labels[60:]).all()


def test_a_class_without_training_images_has_probability_zero():
    labels = np.arange(60) % 2 * 2 + 1  # classes 1 and 3 of 5
    probabilities = colour_baseline(coloured(labels), labels, np.arange(40), np.arange(40, 60), 5)
    assert (probabilities[:, [0, 2, 4]] == 0).all()
    assert (probabilities.argmax(axis=1) == labels[40:]).all()


def test_one_training_class_and_no_test_image():
    labels = np.full(10, 2)
    probabilities = colour_baseline(coloured(labels), labels, np.arange(6), np.arange(6, 10), 3)
    assert (probabilities == [0, 0, 1]).all()
    mixed = np.arange(10) % 3
    assert colour_baseline(coloured(mixed), mixed, np.arange(10), [], 3).shape == (0, 3)


def test_bad_input_is_named():
    labels = np.arange(4) % 2
    with pytest.raises(UserError, match="no training image"):
        colour_baseline(coloured(labels), labels, [], [0], 2)
    with pytest.raises(UserError, match="expected uint8"):
        colour_features(coloured(labels).astype(np.float32))
    with pytest.raises(UserError, match="S at least 3"):
        colour_features(np.zeros((1, 2, 2, 3), np.uint8))


@pytest.mark.skipif(not REAL.exists(), reason="real images are not here")
def test_score_on_real_images():
    """Far better than chance (1/7) on every third of 1,967 photographs, and far from perfect."""
    table = pd.read_csv(REAL / "HAM10000_metadata.csv")[::3].reset_index(drop=True)
    files = {file.stem: file for file in REAL.glob("*/*.jpg")}
    images = np.empty((len(table), 24, 24, 3), np.uint8)
    for row, name in enumerate(table["image_id"]):
        with Image.open(files[name]) as photograph:
            photograph.draft("RGB", (75, 75))
            images[row] = photograph.resize((24, 24), Image.Resampling.BOX)
    classes = sorted(table["dx"].unique())
    labels = table["dx"].map(classes.index).to_numpy()
    probabilities = np.zeros((len(table), len(classes)))
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, table["lesion_id"]):
        probabilities[test] = colour_baseline(images, labels, train, test, len(classes))
    assert 0.28 < headline_metrics(probabilities, labels, classes)["balanced_accuracy"] < 0.5
