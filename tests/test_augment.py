"""Augmentation: a pure function of seed, epoch and position; each magnitude does what it says."""

import cv2
import numpy as np
import pytest

from exp_tools.data.augment import Magnitudes, augment, draw_colour, draw_warp, generator_for, magnitudes


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def test_no_magnitude_gives_the_image_back(image):
    assert (augment(image, Magnitudes(), generator_for(0, 1, 2)) == image).all()


def test_a_draw_depends_on_seed_epoch_and_position_alone(image, params):
    limits = magnitudes(params.train.augment)
    reference = augment(image, limits, generator_for(3, 4, 5))
    assert (augment(image, limits, generator_for(3, 4, 5)) == reference).all()
    for other in ((2, 4, 5), (3, 5, 5), (3, 4, 6), (4, 3, 5)):
        assert (augment(image, limits, generator_for(*other)) != reference).any()


def test_flips_reach_all_four_mirror_images_equally(image):
    mirrored = {image[::y, ::x].tobytes(): 0 for x in (1, -1) for y in (1, -1)}
    for position in range(400):
        mirrored[augment(image, Magnitudes(flip=1), generator_for(0, 0, position)).tobytes()] += 1
    assert len(mirrored) == 4
    assert min(mirrored.values()) > 70


def test_rotation_and_zoom_keep_the_centre_and_their_limits():
    for position in range(50):
        warp = draw_warp(Magnitudes(rotation=30, scale=0.2), 101, generator_for(0, 0, position))
        np.testing.assert_allclose(warp @ [50, 50, 1], [50, 50], atol=1e-9)
        zoom = 1 / np.sqrt(np.linalg.det(warp[:, :2]))
        angle = np.degrees(np.arctan2(warp[1, 0], warp[0, 0]))
        assert 0.8 <= zoom <= 1.2
        assert -30 <= angle <= 30


def test_shift_moves_by_whole_pixels_the_right_way():
    image = np.zeros((21, 21, 3), dtype=np.uint8)
    image[10, 10] = 255

    class Fixed:
        def random(self, count):
            return np.zeros(count)

        def uniform(self, low, high, count):
            return np.array([0, 0, 0, 1, 0]) if count == 5 else np.zeros(count)

    moved = augment(image, Magnitudes(shift=2 / 21), Fixed())
    assert np.argwhere(moved[:, :, 0] == 255).tolist() == [[10, 12]]


def test_colour_matrix_against_the_hand_worked_case():
    class Fixed:
        def uniform(self, low, high, count):
            return np.array([0.5, 1.0, 0.0, 0.0])  # brightness, contrast, saturation, hue

    matrix = draw_colour(Magnitudes(brightness=0.2, contrast=0.5), np.array([100.0, 100.0, 100.0]), Fixed())
    # gain 1.1, stretch 1.5 about luma 100: 1.1 * (1.5 * (120 - 100) + 100) = 143
    np.testing.assert_allclose(matrix @ [120, 120, 120, 1], [143] * 3, atol=1e-9)


def test_hue_and_saturation_leave_grey_and_luma_alone():
    for position in range(20):
        matrix = draw_colour(Magnitudes(hue=90, saturation=0.5), np.zeros(3), generator_for(0, 0, position))
        np.testing.assert_allclose(matrix @ [80, 80, 80, 1], [80] * 3, atol=1e-9)
        luma = np.array([0.299, 0.587, 0.114])
        assert luma @ (matrix @ [10, 200, 90, 1]) == pytest.approx(luma @ [10, 200, 90])


def test_colours_are_clipped_not_wrapped():
    white = np.full((8, 8, 3), 250, dtype=np.uint8)
    for position in range(20):
        assert augment(white, Magnitudes(brightness=0.4), generator_for(0, 0, position)).min() >= 149


def test_the_border_is_mirrored_not_black():
    flat = np.full((32, 32, 3), 180, dtype=np.uint8)
    for position in range(20):
        turned = augment(flat, Magnitudes(rotation=45, shift=0.3, scale=0.5), generator_for(0, 0, position))
        assert (turned == 180).all()


def test_one_warp_equals_the_same_steps_one_by_one(image):
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    generator = generator_for(0, 0, 7)
    warp = draw_warp(Magnitudes(rotation=40), 48, generator)
    angle = np.degrees(np.arctan2(warp[1, 0], warp[0, 0]))
    by_cv = cv2.warpAffine(
        smooth, cv2.getRotationMatrix2D((23.5, 23.5), angle, 1), (48, 48), borderMode=cv2.BORDER_REFLECT_101
    )
    ours = augment(smooth, Magnitudes(rotation=40), generator_for(0, 0, 7))
    assert np.abs(ours.astype(int) - by_cv).max() <= 2


def test_a_magnitude_by_hand_replaces_the_presets(content):
    from exp_tools.params import parse_params

    content["train"]["augment"] |= {"preset": "heavy", "rotation": 3, "flip": False}
    limits = magnitudes(parse_params(content).train.augment)
    assert (limits.rotation, limits.flip, limits.scale) == (3, 0, 0.25)
