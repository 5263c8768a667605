"""Disturbed images are what their names say, from the seed alone, alike at any size, and worse with severity."""

from io import BytesIO
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from exp_tools.data.synthetic.scene import draw_lesion
from exp_tools.errors import UserError
from exp_tools.evaluation.robustness.camera import GAMMA, KEPT, NOISE, QUALITY, STOPS
from exp_tools.evaluation.robustness.disturb import KINDS, SEVERITIES, disturb
from exp_tools.param_types import Disturbance
from exp_tools.params import parse_params

LESIONS = ("mel", "nv", "bkl", "bcc")
DRAWS_NOTHING = ("blur", "jpeg")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Four drawn lesions, [448, 448, 3]."""
    drawn = [draw_lesion(code, lesion_seed=place, view_seed=place)[0] for place, code in enumerate(LESIONS)]
    return [cv2.resize(image, (448, 448), interpolation=cv2.INTER_AREA) for image in drawn]


def squared(image: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def change(image: np.ndarray, disturbed: np.ndarray) -> float:
    return float(np.abs(disturbed.astype(float) - image).mean())


def grey(size: int = 224, level: int = 128) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def test_the_kinds_are_those_that_params_allow(content):
    assert tuple(KINDS) == get_args(Disturbance)
    content["evaluate"]["robustness"] = [*KINDS]
    assert parse_params(content).evaluate.robustness == [*KINDS]
    content["evaluate"]["robustness"] = ["hair", "motoin"]
    with pytest.raises(UserError, match=r"evaluate.robustness.1 is 'motoin'.*did you mean 'motion'"):
        parse_params(content)
    content["evaluate"]["robustness"] = ["hair", "blur", "hair"]
    with pytest.raises(UserError, match="hair is named twice"):
        parse_params(content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_and_image_give_the_same_and_others_another(kind, pictures):
    image = squared(pictures[0], 96)
    before = image.copy()
    first = [disturb(image, kind, severity, seed=3, image_id="A") for severity in SEVERITIES]
    again = [disturb(image, kind, severity, seed=3, image_id="A") for severity in reversed(SEVERITIES)]
    assert all((one == other).all() for one, other in zip(first, reversed(again), strict=True))
    assert (image == before).all()
    assert all(one.dtype == np.uint8 and one.shape == image.shape for one in first)
    assert (disturb(image, kind, 0, seed=3, image_id="A") == image).all()
    others = [disturb(image, kind, 5, seed=s, image_id=i) for s, i in ((4, "A"), (3, "B"), (4, "B"), (5, "C"))]
    assert any((other != first[-1]).any() for other in others) == (kind not in DRAWS_NOTHING)


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_changes_more_than_the_one_before(kind, pictures):
    changes = np.zeros((len(pictures), 6))
    for place, picture in enumerate(pictures):
        image = squared(picture, 128)
        for severity in SEVERITIES:
            changes[place, severity] = change(image, disturb(image, kind, severity, seed=0, image_id=LESIONS[place]))
    assert (np.diff(changes.mean(axis=0)) > 0).all(), changes
    if kind in ("hair", "ruler", "dark_corner", "blur", "noise", "brightness", "colour_cast"):
        assert (np.diff(changes) >= 0).all(), changes  # of each image too: the same draw taken further


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("severity", [2, 5])
def test_a_small_and_a_large_square_are_disturbed_alike(kind, severity, pictures):
    apart = effect = of_small = 0.0
    for place, picture in enumerate(pictures):
        name = LESIONS[place]
        small = disturb(squared(picture, 64), kind, severity, seed=0, image_id=name)
        large = squared(disturb(squared(picture, 224), kind, severity, seed=0, image_id=name), 64)
        apart += change(small, large)
        effect += change(squared(picture, 64), large)
        of_small += change(squared(picture, 64), small)
    assert effect > 1
    if kind == "jpeg":  # blocks of 8 pixels of 192 and of 224: as large, not in the same places
        assert 0.7 < of_small / effect < 1.4, (of_small, effect)
    else:
        assert apart < 0.35 * effect + 0.6, (apart, effect)


def test_hair_is_thin_and_dark_and_more_of_it_covers_more():
    covered = []
    for severity in SEVERITIES:
        changed = (disturb(grey(level=200), "hair", severity, seed=1, image_id="A") < 190).all(axis=2)
        covered.append(changed.mean())
        eroded = cv2.erode(changed.astype(np.uint8), np.ones((7, 7), np.uint8))
        assert eroded.mean() < 0.02 * changed.mean()  # strokes, no blots
    assert 0.002 < covered[0] < 0.03 < covered[-1] < 0.3


def test_a_ruler_lies_along_one_side_with_even_marks():
    for name in "ABCDEFGH":
        image = disturb(grey(), "ruler", 1, seed=0, image_id=name)
        dark = (image < 110).all(axis=2)
        shares = [dark[:, :20].mean(), dark[:, -20:].mean(), dark[:20].mean(), dark[-20:].mean()]
        assert max(shares) > 0.05
        assert not dark[30:-30, 30:-30].any()
        edge = [dark[:, :8].any(1), dark[:, -8:].any(1), dark[:8].any(0), dark[-8:].any(0)][int(np.argmax(shares))]
        starts = np.flatnonzero(np.diff(edge.astype(int)) == 1)[1:-1]
        assert len(starts) >= 15
        assert np.ptp(np.diff(starts)) <= 5  # a number is next to a mark


def test_dark_corners_leave_the_middle():
    image = disturb(grey(level=200), "dark_corner", 3, seed=0, image_id="A")
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners < 10).all()
    assert (image[100:124, 100:124] > 190).all()
    assert (disturb(grey(level=200), "dark_corner", 5, seed=0, image_id="A")[112, [0, -1]] < 10).all()


def test_bubbles_are_bright_rings_with_a_dark_edge():
    counts = []
    for severity in (1, 5):
        image = disturb(grey(448), "bubbles", severity, seed=0, image_id="A").astype(int)
        counts.append((np.abs(image - 128) > 10).any(axis=2).mean())
        assert image.max() > 220
        assert image.min() < 115
    assert counts[1] > 3 * counts[0] > 0


def test_blur_is_a_gaussian_of_a_share_of_the_side():
    block = np.zeros((201, 201, 3), np.uint8)
    block[90:111, 90:111] = 255
    spread = disturb(block, "blur", 5, seed=0, image_id="A")[:, :, 0].astype(float)
    variance = (spread.sum(axis=0) * (np.arange(201) - 100) ** 2).sum() / spread.sum()
    assert np.sqrt(variance - (21**2 - 1) / 12) == pytest.approx(0.026 * 201, rel=0.02)


def test_motion_draws_a_point_out_to_a_line():
    for name in "ABC":
        point = np.zeros((201, 201, 3), np.uint8)
        point[99:102, 99:102] = 255
        moved = disturb(point, "motion", 4, seed=0, image_id=name)[:, :, 0].astype(float)
        y, x = np.nonzero(moved)
        weights = moved[y, x]
        spread = np.cov(np.stack([x, y]), aweights=weights)
        across, along = np.sqrt(np.linalg.eigvalsh(spread))
        assert along == pytest.approx(0.1 * 201 / np.sqrt(12), rel=0.15)  # of a uniform distribution
        assert across < 1.5


@pytest.mark.parametrize("severity", SEVERITIES)
def test_compression_is_that_of_jpeg(severity, pictures):
    image = squared(pictures[1], 224)
    file = BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=QUALITY[severity - 1])
    expected = np.asarray(Image.open(file))
    ours = disturb(image, "jpeg", severity, seed=0, image_id="A")
    assert change(expected, ours) < 0.1 * change(image, expected)


def test_noise_has_its_deviation_and_no_bias():
    for size, expected in ((224, 1.0), (112, 0.5)):  # four pixels of a picture of 224 are averaged
        noisy = disturb(grey(size), "noise", 2, seed=0, image_id="A").astype(float) - 128
        bright = NOISE[1] * np.sqrt(0.3 + 0.7 * 128 / 255)
        assert noisy.std() == pytest.approx(expected * bright, rel=0.05)
        assert abs(noisy.mean()) < 0.3


def test_exposure_doubles_or_halves_the_light():
    found = set()
    for name in "ABCDEFGH":
        values = disturb(grey(8, 100), "brightness", 3, seed=0, image_id=name)
        assert np.ptp(values) == 0
        found.add(round(float(np.log2((values[0, 0, 0] / 255) ** GAMMA / (100 / 255) ** GAMMA)), 1))
    assert found == {-STOPS[2], STOPS[2]}


def test_a_cast_moves_the_channels_apart_and_keeps_their_product():
    for name in "ABC":
        values = disturb(grey(8, 100), "colour_cast", 5, seed=0, image_id=name)[0, 0].astype(float)
        assert values.max() / values.min() > 1.25
        assert np.prod(values / 100) == pytest.approx(1, abs=0.03)


def test_a_crop_is_a_part_of_the_picture_enlarged():
    ramp = np.linspace(0, 255, 224)
    image = np.stack([np.tile(ramp, (224, 1)), np.tile(ramp[:, None], (1, 224)), np.zeros((224, 224))], axis=2)
    for name in "ABCD":
        part = disturb(np.rint(image).astype(np.uint8), "crop", 5, seed=0, image_id=name).astype(float)
        wide, high = part[:, -1, 0].mean() - part[:, 0, 0].mean(), part[-1, :, 1].mean() - part[0, :, 1].mean()
        assert wide == pytest.approx(255 * KEPT[4], abs=3)
        assert high == pytest.approx(255 * KEPT[4], abs=3)
        edges = [part[:, 0, 0].min(), 255 - part[:, -1, 0].max(), part[0, :, 1].min(), 255 - part[-1, :, 1].max()]
        assert min(edges) <= 3  # one side of the picture is reached
