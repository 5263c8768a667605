"""Augmentation: a pure function of seed, epoch and position; each magnitude does what it says."""

import colorsys
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, fields, replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
from helpers.project import ROOT

from exp_tools.data.inputs import augment as module
from exp_tools.data.inputs.augment import (
    PRESETS,
    Magnitudes,
    augment,
    choose_one,
    draw_colour,
    draw_warp,
    erase,
    generator_for,
    magnitudes,
)
from exp_tools.params import AugmentParams, parse_params


class Drawn:
    """Stands for a generator whose draws are known: no flip, every magnitude 0 but those named."""

    WARP = ("rotation", "scale", "shear", "shift_x", "shift_y", "tilt_x", "tilt_y")

    def __init__(self, **named):
        self.warp = np.array([named.get(name, 0.0) for name in self.WARP])

    def random(self, count):
        return np.zeros(count)

    def uniform(self, low, high, count):
        return self.warp if count == len(self.WARP) else np.zeros(count)


@pytest.fixture
def image():
    return np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def test_no_magnitude_gives_the_image_back(image):
    assert (augment(image, Magnitudes(), generator_for(0, 1, 2)) == image).all()


@pytest.mark.parametrize("preset", ["light", "medium", "heavy", "trivial"])
def test_a_draw_depends_on_seed_epoch_and_position_alone(image, preset):
    limits = Magnitudes(**PRESETS[preset])
    reference = augment(image, limits, generator_for(3, 4, 5))
    assert (augment(image, limits, generator_for(3, 4, 5)) == reference).all()
    for other in ((2, 4, 5), (3, 5, 5), (3, 4, 6), (4, 3, 5)):
        assert (augment(image, limits, generator_for(*other)) != reference).any()


def test_the_place_to_write_to_changes_nothing(image):
    out = np.zeros_like(image)
    for preset in PRESETS:
        limits = Magnitudes(**PRESETS[preset])
        written = augment(image, limits, generator_for(0, 1, 2), out=out)
        assert written is out
        assert (augment(image, limits, generator_for(0, 1, 2)) == out).all()


def test_presets_grow_from_none_to_heavy():
    order = [Magnitudes(**PRESETS[name]) for name in ("none", "light", "medium", "heavy")]
    for weaker, stronger in pairwise(order):
        assert all(getattr(weaker, field.name) <= getattr(stronger, field.name) for field in fields(Magnitudes))
        assert weaker != stronger
    assert order[0] == Magnitudes()


def test_flips_reach_all_four_mirror_images_equally(image):
    mirrored = {image[::y, ::x].tobytes(): 0 for x in (1, -1) for y in (1, -1)}
    for position in range(400):
        mirrored[augment(image, Magnitudes(flip=1), generator_for(0, 0, position)).tobytes()] += 1
    assert len(mirrored) == 4
    assert min(mirrored.values()) > 70


def test_rotation_and_zoom_keep_the_centre_and_their_limits():
    for position in range(50):
        warp = draw_warp(Magnitudes(rotation=30, scale=0.2), 101, generator_for(0, 0, position))
        np.testing.assert_allclose(warp @ [50, 50, 1], [50, 50, 1], atol=1e-9)
        zoom = 1 / np.sqrt(np.linalg.det(warp[:2, :2]))
        angle = np.degrees(np.arctan2(warp[1, 0], warp[0, 0]))
        assert 0.8 <= zoom <= 1.2
        assert -30 <= angle <= 30


def test_shift_moves_by_whole_pixels_the_right_way():
    image = np.zeros((21, 21, 3), dtype=np.uint8)
    image[10, 10] = 255

    moved = augment(image, Magnitudes(shift=2 / 21), Drawn(shift_x=1))
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
        for perspective in (0, 0.3):
            limits = Magnitudes(rotation=45, shift=0.9, scale=0.5, shear=45, perspective=perspective)
            assert (augment(flat, limits, generator_for(0, 0, position)) == 180).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_bring_in_no_colour_that_was_not_there(preset):
    flat = np.full((32, 32, 3), 128, dtype=np.uint8)
    limits = Magnitudes(**PRESETS[preset] | dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0))
    assert all((augment(flat, limits, generator_for(0, 0, position)) == 128).all() for position in range(50))


def mapped(warp, points):
    """Where a [3, 3] map takes points [N, 2]."""
    moved = np.column_stack([points, np.ones(len(points))]) @ warp.T
    return moved[:, :2] / moved[:, 2:]


CORNERS = np.array([[0, 0], [100, 0], [100, 100], [0, 100]])  # of a picture of 101 x 101 pixels, clockwise


@pytest.mark.parametrize(
    ("tilt", "corners"),
    [
        # A far side half as long: k = 1/3, so 50 to either side of the middle become 50 / (1 + 1/3) = 37.5 on the far
        # side and 50 / (1 - 1/3) = 75 on the near one.
        ({"tilt_x": 1}, [[-25, -25], [87.5, 12.5], [87.5, 87.5], [-25, 125]]),
        ({"tilt_x": -1}, [[12.5, 12.5], [125, -25], [125, 125], [12.5, 87.5]]),
        ({"tilt_y": 1}, [[-25, -25], [125, -25], [87.5, 87.5], [12.5, 87.5]]),
    ],
)
def test_a_known_tilt_moves_the_corners_where_it_must(tilt, corners):
    from_tilted = draw_warp(Magnitudes(perspective=0.5), 101, Drawn(**tilt))
    np.testing.assert_allclose(mapped(np.linalg.inv(from_tilted), CORNERS), corners, atol=1e-9)
    np.testing.assert_allclose(mapped(from_tilted, np.array(corners)), CORNERS, atol=1e-9)
    by_cv = cv2.getPerspectiveTransform(np.float32(corners), np.float32(CORNERS))
    np.testing.assert_allclose(from_tilted / from_tilted[2, 2], by_cv, atol=1e-6)


def test_pixels_are_tilted_as_the_map_says():
    bar = np.zeros((101, 101, 3), dtype=np.uint8)
    bar[40:61] = 255
    tilted = augment(bar, Magnitudes(perspective=0.5), Drawn(tilt_x=1))[:, :, 0]
    # k = 1/3: 21 pixels become 21 (1 + 1/3) at the frame's near side and 21 (1 - 1/3) at its far side
    assert [(tilted[:, column] > 127).sum() for column in (0, 50, 100)] == pytest.approx([28, 21, 14], abs=1)


def test_perspective_leaves_the_other_draws_alone_and_keeps_its_limit():
    limits = Magnitudes(flip=1, rotation=180, scale=0.2, shear=10, perspective=0.3)
    for position in range(20):
        flat, tilted = (
            draw_warp(one, 101, generator_for(0, 0, position)) for one in (replace(limits, perspective=0), limits)
        )
        assert (flat[2] == [0, 0, 1]).all()
        assert (tilted[2, :2] != 0).all()
        np.testing.assert_allclose(mapped(tilted, np.array([[50, 50]])), [[50, 50]], atol=1e-9)
        nearness = np.array([[0, 50, 1], [100, 50, 1], [50, 0, 1], [50, 100, 1]]) @ tilted[2]
        for far, near in (sorted(nearness[:2]), sorted(nearness[2:])):
            assert 0.7 <= far / near < 1


def test_both_kinds_of_warp_agree_where_they_must(image):
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    affine, projective = (
        augment(smooth, Magnitudes(rotation=180, perspective=tilt), generator_for(0, 0, 3)) for tilt in (0, 1e-9)
    )
    assert np.abs(affine.astype(int) - projective).max() <= 2


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
    content["train"]["augment"] |= {"preset": "heavy", "rotation": 3, "flip": False}
    limits = magnitudes(parse_params(content).train.augment)
    assert (limits.rotation, limits.flip, limits.scale, limits.perspective) == (3, 0, 0.25, 0.1)
    content["train"]["augment"] |= {"preset": "none", "perspective": 0.05}
    assert magnitudes(parse_params(content).train.augment) == Magnitudes(flip=0, rotation=3, perspective=0.05)


def test_every_magnitude_can_be_given_by_hand():
    assert {field.name for field in fields(Magnitudes)} - {"one"} == AugmentParams.model_fields.keys() - {"preset"}


def drawn_limits(limits, count=700):
    return [choose_one(limits, generator_for(0, 0, position)) for position in range(count)]


def test_trivial_makes_one_change_each_as_often_as_none():
    limits = Magnitudes(**PRESETS["trivial"])
    found = Counter()
    for chosen in drawn_limits(limits):
        changes = {name for name, limit in asdict(chosen).items() if limit}
        assert "flip" in changes
        assert len(changes) <= 2
        assert all(getattr(chosen, name) == getattr(limits, name) for name in changes)
        found[frozenset(changes - {"flip"})] += 1
    names = {"rotation", "shift", "shear", "brightness", "contrast", "saturation"}
    assert found.keys() == {frozenset(), *(frozenset({name}) for name in names)}
    assert 60 < min(found.values()) <= max(found.values()) < 140  # of 100, four standard deviations


def test_trivial_is_one_change_of_a_picture_and_can_be_changed_by_hand(content, image):
    content["train"]["augment"] |= {"preset": "trivial", "flip": False, "shear": 0, "hue": 90, "erase": 0.5}
    limits = magnitudes(parse_params(content).train.augment)
    chosen = drawn_limits(limits)
    assert {limit.hue for limit in chosen} == {0, 90}
    assert {(limit.shear, limit.flip, limit.erase) for limit in chosen} == {(0, 0, 0.5)}
    for position in range(30):  # the change is drawn after it is chosen, by the same generator
        generator = generator_for(0, 1, position)
        alone = choose_one(limits, generator)
        assert (augment(image, alone, generator) == augment(image, limits, generator_for(0, 1, position))).all()


def erased_box(before, after):
    """Top, left, height and width of where two pictures differ."""
    rows, columns = (np.flatnonzero((before != after).any((axis, 2))) for axis in (1, 0))
    return rows[0], columns[0], rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]


def test_erasing_covers_a_box_of_the_final_picture_with_noise_as_often_as_asked():
    flat = np.full((128, 128, 3), 200, dtype=np.uint8)
    share, boxes = 0.25, []
    for position in range(800):
        given = flat.copy()
        erased = augment(given, Magnitudes(erase=share, rotation=180), generator_for(0, 0, position))
        assert (given == 200).all()
        if (erased != 200).any():
            top, left, height, width = erased_box(flat, erased)
            boxes.append((height, width))
            box = erased[top : top + height, left : left + width]
            assert abs(box.mean() - 127.5) < 12
            assert box.min() < 40 < 215 < box.max()
    assert 800 * share - 60 < len(boxes) < 800 * share + 60  # five standard deviations
    areas = np.array([height * width for height, width in boxes]) / 128**2
    aspects = np.array([height / width for height, width in boxes])
    assert 0.015 < areas.min() < 0.05 < 0.28 < areas.max() < 0.34
    assert 0.28 < aspects.min() < 0.45 < 2.2 < aspects.max() < 3.6


def test_a_box_longer_than_the_picture_is_cut_off(monkeypatch):
    monkeypatch.setattr(module, "ERASED", (0.99, 1.0))
    for position in range(20):
        picture = np.full((32, 32, 3), 200, dtype=np.uint8)
        erase(picture, generator_for(0, 0, position))
        assert max(erased_box(np.full_like(picture, 200), picture)[2:]) >= 31


def test_erasing_leaves_the_other_draws_alone(image):
    for position in range(20):
        limits = Magnitudes(**PRESETS["medium"])
        plain = augment(image, limits, generator_for(0, 0, position))
        erased = augment(image, replace(limits, erase=1), generator_for(0, 0, position))
        top, left, height, width = erased_box(plain, erased)
        plain[top : top + height, left : left + width] = erased[top : top + height, left : left + width]
        assert (plain == erased).all()
        assert (erased == augment(image, replace(limits, erase=1), generator_for(0, 0, position))).all()


def hsv_hue(colour):
    return colorsys.rgb_to_hsv(*(np.array(colour) / 255))[0] * 360


@pytest.mark.parametrize("skin", [(200, 150, 130), (225, 170, 160), (120, 70, 50)])
def test_36_degrees_of_hue_are_51_or_31_of_hsv_for_skin(skin):
    """What params.yaml and docs/recipes.md say."""

    class Fixed:
        def __init__(self, sign):
            self.sign = sign

        def uniform(self, low, high, count):
            return np.array([0.0, 0.0, 0.0, self.sign])

    turns = []
    for sign in (1, -1):
        turned = draw_colour(Magnitudes(hue=36), np.zeros(3), Fixed(sign)) @ [*skin, 1]
        turns.append((hsv_hue(turned) - hsv_hue(skin) + 180) % 360 - 180)
    assert turns == [pytest.approx(-51, abs=1), pytest.approx(32.5, abs=2)]


def test_the_picture_in_the_docs_is_what_its_script_draws(tmp_path):
    picture = ROOT / "docs" / "images" / "augment.png"
    script = picture.with_name("draw_augment.py")
    subprocess.run([sys.executable, script, "--out", tmp_path / "again.png"], check=True)
    committed, again = (cv2.imread(str(file)).astype(int) for file in (picture, tmp_path / "again.png"))
    assert committed.shape == again.shape
    assert np.abs(committed - again).mean() < 1  # fonts and palettes differ a little between versions of Pillow
    assert picture.stat().st_size < 400_000
