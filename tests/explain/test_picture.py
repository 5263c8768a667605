"""The image at its own size under its heat map, with a legend; maps that show no place are said to."""

from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.datasets import picture
from helpers.models import write_model
from helpers.pictures import turned
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.explain.overlay import is_flat, overlay, unit, upsample
from exp_tools.explain.picture import NARROWEST, SIDE, explained, own_size
from exp_tools.serving.predictor import Predictor

HALF = np.zeros((32, 32), np.float32)
HALF[:, 20:] = 1
FLAT = {
    "one position": np.full((1, 1), 0.3, np.float32),  # which bilinear scaling makes uneven in the last bit
    "equal": np.full((7, 7), 0.3, np.float32),
    "equal to rounding": np.full((7, 7), 0.3, np.float32) * (1 + np.linspace(0, 9e-4, 49).reshape(7, 7)),
    "zero": np.zeros((7, 7), np.float32),
    "negative": np.full((7, 7), -2.0, np.float32),
}


def stored(image: Image.Image, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_map_is_not_stretched(name):
    heat = FLAT[name]
    image = np.full((96, 128, 3), 90, np.uint8)
    assert is_flat(heat[None]).tolist() == [True]
    assert unit(upsample(heat[None], 600)).max() == 0
    np.testing.assert_array_equal(overlay(image, heat), image)


def test_a_map_of_two_thousandths_is_a_map():
    heat = np.array([[1.0, 1.002]])
    assert is_flat(heat[None]).tolist() == [False]
    assert unit(heat[None]).tolist() == [[[0, 1]]]


@pytest.mark.parametrize(("size", "resize", "expected"), [
    ((600, 450), "squash", (600, 450)),
    ((2400, 1200), "squash", (SIDE, SIDE // 2)),
    ((40, 30), "squash", (40, 30)),
    ((600, 450), "crop", (450, 450)),
    ((600, 450), "pad", (600, 600)),
    ((2400, 1200), "crop", (SIDE // 2, SIDE // 2)),
])  # fmt: skip
def test_a_picture_keeps_its_own_size_and_proportions(size, resize, expected):
    assert own_size(stored(Image.new("RGB", size)), resize).size == expected


@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "AVIF", "HEIF"])
def test_a_turned_picture_is_upright(kind):
    assert own_size(turned(kind), "squash").size == (90, 60)


def test_the_map_colours_the_hot_part_alone_and_a_legend_stands_below():
    content = stored(picture(0, 600, 450))
    plain = np.asarray(own_size(content, "squash")).astype(int)
    whole = explained(content, "squash", HALF, "gradcam", "Melanoma", 0.9)
    assert whole.width == 600
    assert 450 < whole.height < 450 * 1.15
    pixels = np.asarray(whole).astype(int)
    difference = np.abs(pixels[:450] - plain).sum(axis=2)
    assert difference[:, :350].max() == 0
    assert difference[:, 420:].min() > 0
    # The legend's bar runs from the grey below it to the end of viridis, and has words on both sides.
    legend = pixels[450:]
    colours = legend[np.abs(np.diff(legend, axis=2)).max(axis=2) > 100]
    assert np.abs(colours - [248, 228, 53]).sum(axis=1).min() < 20
    assert (legend.max(axis=(1, 2)) > 250).all()
    for side in (legend[:, :40], legend[:, -40:]):
        assert (side.max(axis=2) < 60).any()
    same = explained(content, "squash", HALF, "gradcam", "Melanoma", 0.0)
    np.testing.assert_array_equal(np.asarray(same)[:450], plain)


@pytest.mark.parametrize("name", FLAT)
def test_a_flat_map_leaves_the_picture_and_its_legend_has_no_colours(name):
    content = stored(picture(0, 600, 450))
    pixels = np.asarray(explained(content, "squash", FLAT[name], "gradcam", "Melanoma")).astype(int)
    np.testing.assert_array_equal(pixels[:450], np.asarray(own_size(content, "squash")))
    assert np.ptp(pixels[450:], axis=2).max() == 0
    assert pixels[450:].min() < 60  # words


def test_the_legend_of_a_small_picture_and_of_a_long_name_can_be_read():
    whole = explained(stored(picture(0, 60, 45)), "squash", HALF, "attention", "x" * 5000)
    assert whole.width == NARROWEST
    assert whole.height < 120


@pytest.fixture
def flat_model(tmp_path, monkeypatch):
    """A model whose Grad-CAM is flat to rounding."""
    path = tmp_path / "m.safetensors"
    write_model(path)
    flat = FLAT["equal to rounding"][None]
    monkeypatch.setattr("exp_tools.serving.engines.grad_cam", lambda *_: flat)
    picture(7, 200, 150).save(tmp_path / "image.png")
    torch.set_num_threads(1)
    return path


def test_a_flat_map_is_said_by_the_predictor_and_by_the_command(flat_model, tmp_path, capsys):
    said = "Grad-CAM is the same everywhere in this image, so it shows no place"
    image = tmp_path / "image.png"
    assert Predictor(flat_model).predict(image).notes == []
    assert Predictor(flat_model).predict(image, explain=["gradcam"]).notes == [said]
    arguments = ["predict", str(image), "--model", str(flat_model), "--explain", str(tmp_path / "map.png")]
    assert cli.main(arguments) == 0
    assert f"note: {said}" in capsys.readouterr().out
    with Image.open(tmp_path / "map.png") as drawn:
        assert drawn.width == NARROWEST
        np.testing.assert_array_equal(np.asarray(drawn)[:150, :200], np.asarray(picture(7, 200, 150)))
