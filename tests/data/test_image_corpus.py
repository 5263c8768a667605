"""Odd and bad pictures, drawn in code: each has one documented answer (docs/data.md), as a file and as bytes alike."""

import builtins
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers import pictures
from helpers.bad_pictures import BOMBS, JPEG_DICOM, REFUSED, dicom_of, scanned, tiff_of
from helpers.pictures import GREY, PIXELS, deep_png, deep_tiff, dicom, encoded, heic, moving, profile
from PIL import Image, ImageFile

from exp_tools.data.images.colours import eight_bits
from exp_tools.data.images.decode import ImageFault, decode_with_notes, index_images, load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.errors import UserError
from exp_tools.params import OnProblemParams

PLAIN = Preprocessing(32)
GREY_16 = GREY.astype(np.uint16)
RGB_16 = PIXELS.astype(np.uint16)
SHARES = (GREY / 255).astype(np.float32)


class Read(NamedTuple):
    """A picture that is read: the kinds of notes in order, and the square that is expected within `within` of 255."""

    name: str
    make: Callable[[], bytes]
    notes: Sequence[str] = ()
    of: Any = PIXELS
    within: int = 2


OTHER, TURNED, SEVERAL, NAMED = "other_pixels", "exif_rotation", "several_frames", "wrong_ending"
READ = [
    Read("a.jpg", lambda: encoded("JPEG"), within=4),
    Read("a.JPEG", lambda: encoded("JPEG", progressive=True), within=4),
    Read("a.jfif", lambda: encoded("JPEG"), within=4),
    Read("a.jpe", lambda: encoded("JPEG"), within=4),
    Read("without_ending", lambda: encoded("JPEG"), within=4),
    Read("1.2.840.10008", lambda: encoded("JPEG"), within=4),
    Read("restarts.jpg", lambda: encoded("JPEG", restart_marker_rows=1), within=4),
    Read("more behind the end.jpg", lambda: encoded("JPEG") + b"a telephone's film" * 100, within=4),
    Read("zeros behind the end.jpg", lambda: encoded("JPEG") + bytes(5000), within=4),
    Read("broken exif.jpg", lambda: encoded("JPEG", exif=b"Exif\0\0nonsense"), within=4),
    Read("black.jpg", lambda: encoded("JPEG", PIXELS * 0, optimize=True), of=PIXELS * 0),
    Read("grey around.jpg", lambda: encoded("JPEG", PIXELS * 0 + 128, optimize=True), of=PIXELS * 0 + 128),
    Read("a.png", lambda: encoded("PNG")),
    Read("zeros behind the end.png", lambda: encoded("PNG") + bytes(5000)),
    Read("gamma alone.png", lambda: pictures.with_chunk(encoded("PNG"), b"gAMA", (100_000).to_bytes(4, "big"))),
    Read("a.bmp", lambda: encoded("BMP")),
    Read("a.dib", lambda: encoded("BMP")),
    Read("a.tif", lambda: encoded("TIFF")),
    Read("a.tiff", lambda: encoded("TIFF", compression="tiff_lzw")),
    Read("a.webp", lambda: encoded("WEBP")),
    Read("a.avif", lambda: encoded("AVIF"), within=5),
    Read("a.heic", heic, within=4),
    Read("a.hif", heic, within=4),
    Read("a.dcm", lambda: dicom(PIXELS, "RGB")),
    Read("IM000001", lambda: dicom(PIXELS, "RGB")),
    Read("runs.dcm", lambda: pictures.packed_dicom("1.2.840.10008.1.2.5")),
    Read("a.gif", lambda: encoded("GIF"), [OTHER], within=12),
    Read("moving.gif", lambda: moving("GIF"), [SEVERAL, OTHER], within=12),
    Read("moving.png", lambda: moving("PNG"), [SEVERAL]),
    Read("moving.webp", lambda: moving("WEBP"), [SEVERAL], within=12),
    Read("moving.avif", lambda: moving("AVIF"), [SEVERAL], within=9),
    Read("pages.tif", lambda: moving("TIFF"), [SEVERAL]),
    Read("film.dcm", lambda: dicom(np.stack([PIXELS, 255 - PIXELS]), "RGB", frames=2), [SEVERAL]),
    Read("png.jpg", lambda: encoded("PNG"), [NAMED]),
    Read("photo.v2", lambda: encoded("PNG"), [NAMED]),
    Read("notes.txt", lambda: encoded("PNG"), [NAMED]),
    Read("turned.jpg", lambda: pictures.turned("JPEG"), [TURNED], within=4),
    Read("turned.png", lambda: pictures.turned("PNG"), [TURNED]),
    Read("turned.tif", lambda: pictures.turned("TIFF"), [TURNED]),
    Read("turned.webp", lambda: pictures.turned("WEBP"), [TURNED]),
    Read("turned.avif", lambda: pictures.turned("AVIF"), [TURNED], within=6),
    Read("turned.heic", lambda: pictures.turned("HEIF"), [TURNED], within=4),
    Read("grey.png", lambda: encoded("PNG", GREY), [OTHER], GREY),
    Read("palette.png", lambda: encoded("PNG", Image.fromarray(PIXELS).quantize(256)), [OTHER], within=12),
    Read("clear.png", lambda: encoded("PNG", np.dstack([PIXELS, GREY * 0])), [OTHER], PIXELS * 0 + 255),
    Read("inks.jpg", lambda: encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK")), [OTHER], within=6),
    Read("16 bits.png", lambda: deep_png(RGB_16 * 257), [OTHER]),
    Read("16 bits.tif", lambda: deep_tiff(RGB_16 * 257), [OTHER]),
    Read("16 bits clear.png", lambda: pictures.with_chunk(deep_png(RGB_16 * 257), b"tRNS", bytes(6)), [OTHER]),
    Read("16 bits turned.tif", lambda: deep_tiff(np.rot90(RGB_16 * 257), 6), [OTHER, TURNED]),
    Read("grey 16 bits turned.tif", lambda: deep_tiff(np.rot90(GREY_16 * 257), 6), [OTHER, TURNED], GREY),
    Read("white is zero.tif", lambda: deep_tiff(65535 - GREY_16 * 257, photometric=0), [OTHER], GREY),
    Read("12 bits.png", lambda: deep_png(RGB_16 * 16), [OTHER]),
    Read("12 bits.tif", lambda: deep_tiff(RGB_16 * 16), [OTHER]),
    Read("grey 16 bits.png", lambda: deep_png(GREY_16 * 257), [OTHER], GREY),
    Read("grey 12 bits.png", lambda: deep_png(GREY_16 * 16), [OTHER], GREY),
    Read("grey 12 bits.tif", lambda: encoded("TIFF", GREY_16 * 16), [OTHER], GREY),
    Read("grey 12 bits.dcm", lambda: dicom(GREY_16 * 16, "MONOCHROME2", bits=12), [OTHER], GREY),
    Read("10 bits by sBIT.png", lambda: deep_png(GREY_16 * 4, [10]), [OTHER], GREY),
    Read("12 bits by sBIT, scaled.png", lambda: deep_png(GREY_16 * 257, [12]), [OTHER], GREY),
    Read("dark by sBIT.png", lambda: deep_png(GREY_16 * 16, [16]), [OTHER], GREY // 16),
    Read("10 bits by its tag.tif", lambda: encoded("TIFF", GREY_16 * 4, tiffinfo={281: 1023}), [OTHER], GREY),
    Read("shares.tif", lambda: encoded("TIFF", SHARES), [OTHER], GREY),
    Read("shares that overshoot.tif", lambda: encoded("TIFF", (SHARES - 0.5) * 2.2 + 0.5), [OTHER], None),
    Read("floats to 255.tif", lambda: encoded("TIFF", GREY.astype(np.float32)), [OTHER], GREY),
    Read("floats around 0.tif", lambda: encoded("TIFF", SHARES * 200 - 100), [OTHER], None),
    Read("not a number.tif", lambda: encoded("TIFF", SHARES * np.nan), [OTHER], GREY * 0),
    Read("inverted.dcm", lambda: dicom(255 - GREY, "MONOCHROME1"), [OTHER], GREY),
    Read("linear.png", lambda: encoded("PNG", pictures.linear(PIXELS), icc_profile=profile("RGB ")), [OTHER], within=4),
    Read("linear.avif", lambda: encoded("AVIF", pictures.linear(PIXELS), icc_profile=profile("RGB ")), [OTHER], None),
    Read("linear.heic", lambda: heic(pictures.linear(PIXELS), icc_profile=profile("RGB ")), [OTHER], within=9),
    Read(
        "linear grey.png",
        lambda: encoded("PNG", pictures.linear(GREY), icc_profile=profile("GRAY")),
        [OTHER, OTHER],
        GREY,
        within=4,
    ),
    Read(
        "inks with a profile.tif",
        lambda: encoded("TIFF", Image.new("CMYK", (90, 60), (255, 0, 0, 0)), icc_profile=profile("CMYK")),
        [OTHER, OTHER],
        PIXELS * 0 + 171,  # L* = 70
    ),
    Read("profile of other inks.png", lambda: encoded("PNG", icc_profile=profile("CMYK"))),
]


def sampled(cases: Iterable[tuple[str, Any]]) -> list:
    """One case of each answer for every run; the others are for the long one."""
    seen: set[str] = set()
    parameters = []
    for name, case in cases:
        answer = str(case.notes) if isinstance(case, Read) else case[-1]
        marks = [pytest.mark.sweep] if answer in seen else []
        parameters.append(pytest.param(name, case, marks=marks, id=name))
        seen.add(answer)
    return parameters


@pytest.mark.parametrize(("name", "case"), sampled((case.name, case) for case in READ))
def test_an_odd_picture_is_read_and_its_oddness_is_noted(tmp_path, name, case):
    (tmp_path / name).write_bytes(case.make())
    ((image_id, paths),) = index_images(tmp_path).items()
    assert (paths, name.startswith(image_id)) == ([tmp_path / name], True)
    pixels, notes = decode_with_notes(paths[0], PLAIN)
    assert [kind for kind, _, _ in notes] == list(case.notes)
    if case.of is None:
        assert pixels.min() < 40
        assert pixels.max() > 200
    else:
        expected = load_image(Image.fromarray(case.of), PLAIN)
        assert np.abs(pixels.astype(int) - expected).max() <= case.within
    np.testing.assert_array_equal(load_image(case.make(), PLAIN), pixels)  # as the API and the app are given it
    assert load_image(case.make(), Preprocessing(90, "keep")).shape == (60, 90, 3)


@pytest.mark.parametrize(("name", "case"), sampled(REFUSED.items()))
def test_a_bad_picture_is_refused_in_one_line(tmp_path, name, case):
    make, kind = case
    (tmp_path / name).write_bytes(make())
    assert index_images(tmp_path).popitem()[1] == [tmp_path / name]
    with pytest.raises(ImageFault) as fault:
        load_image(tmp_path / name, PLAIN)
    assert fault.value.kind == kind
    assert "\n" not in str(fault.value)
    if not name.endswith(".dng"):  # which its name alone tells from a TIFF
        with pytest.raises(ImageFault) as of_bytes:
            load_image(make(), PLAIN)
        assert (of_bytes.value.kind, str(of_bytes.value)) == (kind, str(fault.value))


@pytest.mark.parametrize(("name", "case"), sampled(BOMBS.items()))
def test_a_bomb_is_refused_before_anything_is_decoded(tmp_path, monkeypatch, name, case):
    make, kind = case
    (tmp_path / name).write_bytes(make())
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    for source in (tmp_path / name, make()):
        with pytest.raises(ImageFault) as fault:
            load_image(source, PLAIN)
        assert fault.value.kind == kind
        assert "\n" not in str(fault.value)


@pytest.mark.parametrize("make", [
    lambda: scanned(60, 90),
    lambda: tiff_of(scanned(60, 80), 60),
    lambda: dicom_of(scanned(60, 80), 60),
], ids=["JPEG", "TIFF", JPEG_DICOM])  # fmt: skip
def test_a_picture_of_some_dozen_scans_is_read(make):
    assert load_image(make(), PLAIN).max() == 0


def test_a_deep_picture_takes_no_more_memory_than_its_bytes_several_times():
    """16 bits of 16 megapixels: 96 MB as they are, and once were 900 MB on the way to 8 bits."""
    values = np.zeros((4000, 4000, 3), np.uint16)
    values[0, 0] = 65535
    tracemalloc.start()
    scaled = eight_bits(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scaled[0, 0].tolist() == [255] * 3
    assert peak < 2 * scaled.nbytes


def test_the_corpus_is_as_large_as_it_says_and_its_answers_can_be_chosen():
    assert len(READ) + len(REFUSED) >= 100
    kinds = {kind for case in READ for kind in case.notes} | {kind for _, kind in REFUSED.values()}
    assert kinds | {"missing_image", "unreadable_image"} <= set(OnProblemParams.model_fields)


def test_an_id_is_the_name_without_a_known_ending(tmp_path):
    names = {
        "a.jfif": "a",
        "b.HEIC": "b",
        "mel_noext": "mel_noext",
        "1.2.840": "1.2.840",
        "x.y": "x.y",
        "c.jpg.jpg": "c.jpg",
    }
    for name in (*names, ".jpg", "Thumbs.db", "DICOMDIR"):
        (tmp_path / name).write_bytes(encoded("PNG"))
    (tmp_path / "readme").write_text("BMW and II*, no pictures")
    (tmp_path / "folder.jpg").mkdir()
    assert {paths[0].name: image_id for image_id, paths in index_images(tmp_path).items()} == names


@pytest.mark.parametrize(("make", "modules", "words"), [
    (heic, ["pillow_heif"], "needs the package pillow-heif (the extra `heic`): pip install pillow-heif"),
    (
        lambda: dicom(PIXELS, "RGB"),
        ["pydicom", "exp_tools.data.images.dicom"],
        "needs the package pydicom (the extra `dicom`): pip install pydicom",
    ),
], ids=["heic", "dicom"])  # fmt: skip
def test_a_reader_that_is_not_installed_is_named(tmp_path, monkeypatch, make, modules, words):
    (tmp_path / "a").write_bytes(make())
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    assert list(index_images(tmp_path)) == ["a"]
    with pytest.raises(ImageFault) as fault:
        load_image(tmp_path / "a", PLAIN)
    assert fault.value.kind == "not_an_image"
    assert words in str(fault.value)


def test_nothing_of_a_patient_is_taken_from_a_dicom_file(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(PIXELS, "RGB"))
    with Image.open(tmp_path / "a.dcm") as image:
        image.load()
        assert "Doe" not in repr(vars(image))
        assert image.info == {"bits": 8}


@pytest.mark.parametrize("orientation", pictures.STORED)
def test_every_orientation_of_deep_and_plain_pictures_is_put_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = pictures.STORED[orientation](PIXELS)
    expected = load_image(Image.fromarray(PIXELS), PLAIN)
    turned = deep_tiff(stored.astype(np.uint16) * 257, orientation)
    for content in (turned, *(encoded(kind, stored.copy(), exif=exif) for kind in ("PNG", "TIFF"))):
        pixels, notes = decode_with_notes(content, PLAIN)
        assert np.abs(pixels.astype(int) - expected).max() <= 1
        assert [value for kind, value, _ in notes if kind == TURNED] == [str(orientation)] * (orientation > 1)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    for name in ("a.jpg", "no_ending"):
        (tmp_path / name).write_bytes(encoded("JPEG"))
    monkeypatch.setattr(builtins, "open", forbidden)
    assert sorted(index_images(tmp_path)) == ["a", "no_ending"]
    with pytest.raises(ImageFault, match="no permission to read the file") as fault:
        load_image(tmp_path / "a.jpg", PLAIN)
    assert fault.value.kind == "unreadable_image"


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(UserError, match=r"the folder cannot be read \(Permission denied\).*chmod u\+rx"):
        index_images(tmp_path)


def forbidden(path, *_, **__):
    raise PermissionError(13, "Permission denied", str(path))


def test_real_photographs_have_no_false_alarms(real_data):
    files = [paths[0] for paths in index_images(real_data / "ham10000-mini").values()][::25]
    files += (real_data / "PH2Dataset").rglob("*Dermoscopic_Image/*.bmp")
    assert len(files) > 90
    assert [note for file in files for note in decode_with_notes(file, PLAIN)[1]] == []
