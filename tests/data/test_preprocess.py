"""Preprocessing does what it says, and nothing when it is off."""

import cv2
import numpy as np
import pytest
from PIL import Image

from exp_tools.data.images.decode import load_image
from exp_tools.data.images.preprocess import (
    Preprocessing,
    apply_filters,
    equalise,
    hair_mask,
    remove_hair,
    shades_of_grey,
)


@pytest.fixture
def skin() -> np.ndarray:
    """Even skin with a round lesion, 128x128."""
    image = np.full((128, 128, 3), (210, 160, 140), np.uint8)
    cv2.circle(image, (64, 64), 28, (110, 70, 60), -1)
    return cv2.GaussianBlur(image, (0, 0), 2)


def test_hairs_go_and_the_lesion_stays(skin):
    hairy = skin.copy()
    for start, end in (((5, 10), (120, 30)), ((10, 120), (60, 90)), ((100, 5), (110, 125))):
        cv2.line(hairy, start, end, (40, 30, 30), 2, cv2.LINE_AA)
    hairs = np.abs(hairy.astype(int) - skin).max(axis=-1) > 40
    cleaned = remove_hair(hairy)
    before = np.abs(hairy.astype(int) - skin)[hairs].mean()
    after = np.abs(cleaned.astype(int) - skin)[hairs].mean()
    assert after < 0.15 * before
    assert (hair_mask(hairy)[hairs] > 0).mean() > 0.9
    far = cv2.dilate(hairs.astype(np.uint8), np.ones((11, 11))) == 0
    assert (cleaned[far] == hairy[far]).all()


def test_a_lesion_without_hairs_is_unchanged(skin):
    assert not hair_mask(skin).any()
    assert (remove_hair(skin) == skin).all()


def test_the_colour_of_the_light_is_divided_out(skin):
    warm = (skin * np.array([1.0, 0.8, 0.6])).round().astype(np.uint8)
    same, other = shades_of_grey(skin).astype(int), shades_of_grey(warm).astype(int)
    chroma = [image / image.sum(axis=-1, keepdims=True) for image in (same, other)]
    assert np.abs(chroma[0] - chroma[1]).max() < 0.01


def test_a_picture_under_neutral_light_is_unchanged():
    grey = np.random.default_rng(0).integers(0, 256, (32, 32, 1), dtype=np.uint8).repeat(3, axis=2)
    assert (shades_of_grey(grey) == grey).all()
    black = np.zeros((8, 8, 3), np.uint8)
    assert (shades_of_grey(black) == black).all()


def test_contrast_is_evened_and_colours_stay(skin):
    faint = (skin.astype(float) * 0.2 + 100).astype(np.uint8)
    evened = equalise(faint)
    assert evened[..., 1].std() > 1.2 * faint[..., 1].std()
    lab = [cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(int)[..., 1:] for image in (faint, evened)]
    assert np.abs(lab[0] - lab[1]).max() <= 4


def test_nothing_is_done_unless_it_is_asked_for(skin, tmp_path):
    assert apply_filters(skin, Preprocessing(64)) is skin
    Image.fromarray(skin).save(tmp_path / "a.png")
    plain = load_image(tmp_path / "a.png", Preprocessing(64))
    wanted = Preprocessing(64, hair_removal=True, colour_constancy=True, clahe=True)
    expected = equalise(shades_of_grey(remove_hair(plain)))
    assert (load_image(tmp_path / "a.png", wanted) == expected).all()
    assert (expected != plain).any()
