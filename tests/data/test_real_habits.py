"""What folders of people's pictures hold besides pictures, and colours that are not sRGB."""

from io import BytesIO

import numpy as np
import pytest
from helpers.datasets import ROOT, DataProject, picture, save
from PIL import Image, ImageCms

from exp_tools.data.images.decode import decode_with_notes, files_below, index_images, is_clutter
from exp_tools.data.images.masks import find_masks
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.sources.tables import tables_below

PLAIN = Preprocessing(image_size=32, resize="squash", hair_removal=False, colour_constancy=False, clahe=False)
CASES = ROOT.parent / "shared/cases"
LEFTOVERS = (
    ".ipynb_checkpoints/a-checkpoint.png",
    "@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
    "__MACOSX/._a.png",
    "Thumbs/a.png",
    "$RECYCLE.BIN/deleted.png",
)


def test_leftover_folders_are_passed_over_by_every_walker(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    for number, code in enumerate(("mel", "nv", "nv")):
        save(mine / code / f"{number}.png", number)
    for name in LEFTOVERS:
        save(mine / "nv" / name, 9)
        (mine / "nv" / name).with_suffix(".csv").write_text("image_id,dx\n")
        (mine / "nv" / name).with_name("x_segmentation.png").write_bytes(b"x")
    assert sorted(index_images(mine)) == ["0", "1", "2"]
    assert [path.name for path in files_below(mine)] == ["0.png", "1.png", "2.png"]
    assert tables_below(mine) == []
    assert find_masks(mine, ("_segmentation",)) == {}
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__source="folder", data__dir=mine)
    project.run("download", "prepare")
    assert project.labels()["image_id"].astype(str).tolist() == ["0", "1", "2"]
    assert project.problems() == []


@pytest.mark.parametrize("name", ["mel", "nv", "thumb", "images", "Thumbnail study"])
def test_a_folder_of_data_is_no_leftover(name):
    assert not is_clutter(name)


def test_a_profile_of_srgb_changes_nothing():
    image = picture(3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = BytesIO()
    image.save(stored, "PNG", icc_profile=profile)
    plain = BytesIO()
    image.save(plain, "PNG")
    (with_it, notes), (without, _) = (decode_with_notes(each.getvalue(), PLAIN) for each in (stored, plain))
    assert notes == []
    np.testing.assert_array_equal(with_it, without)


def test_a_profile_that_cannot_be_read_changes_nothing():
    stored = BytesIO()
    picture(3).save(stored, "PNG", icc_profile=b"no profile at all")
    pixels, notes = decode_with_notes(stored.getvalue(), PLAIN)
    assert notes == []
    np.testing.assert_array_equal(pixels, decode_with_notes(picture(3), PLAIN)[0])


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of real cases is not here")
def test_the_same_picture_in_display_p3_has_the_same_colours():
    expected, nothing = decode_with_notes(CASES / "colour-profile/base.png", PLAIN)
    pixels, ((kind, value, _),) = decode_with_notes(CASES / "colour-profile/icc_p3.png", PLAIN)
    assert nothing == []
    assert kind == "other_pixels"
    assert "P3" in value
    with Image.open(CASES / "colour-profile/icc_p3.png") as image:
        raw = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(raw.astype(int) - expected).max() > 10
    assert np.abs(pixels.astype(int) - expected).max() <= 3
    assert np.abs(pixels.astype(int) - expected).mean() < 0.7
    with Image.open(CASES / "colour-profile/icc_p3.png") as image:  # as a screenshot of a telephone is stored
        profile, clear = image.info["icc_profile"], image.convert("RGBA")
    stored = BytesIO()
    clear.save(stored, "PNG", icc_profile=profile)
    again, notes = decode_with_notes(stored.getvalue(), PLAIN)
    assert {value for _, value, _ in notes} == {"RGBA", value}
    assert np.abs(again.astype(int) - pixels).max() <= 1
