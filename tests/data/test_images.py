"""Packed images are the decoded originals; what cannot be used is said and nothing is half-written."""

import numpy as np
import pytest
from PIL import Image

from exp_tools.data.images.decode import ImageFault, find_images, load_image
from exp_tools.data.images.pack import pack_images
from exp_tools.data.images.preprocess import Preprocessing


def picture(width: int = 60, height: int = 40) -> np.ndarray:
    """Smooth colours, so that resizing and JPEG change little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 4, y * 6, 255 - x * 4], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture
def files(tmp_path):
    paths = []
    for number, ending in enumerate(["jpg", "png", "bmp"] * 15):
        paths.append(tmp_path / f"I{number}.{ending}")
        Image.fromarray(np.roll(picture(), number, axis=1)).save(paths[-1])
    return paths


@pytest.mark.parametrize("processes", [1, 2])
def test_packed_equals_decoded(files, tmp_path, processes):
    assert pack_images(files, tmp_path / "out.npy", Preprocessing(32), processes=processes) == []
    packed = np.load(tmp_path / "out.npy")
    assert packed.shape == (45, 32, 32, 3)
    assert packed.dtype == np.uint8
    for place, file in enumerate(files):
        original = Image.open(file).convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(packed[place].astype(int), np.asarray(original).astype(int), atol=3)


def test_reduced_jpeg_decoding_stays_close_to_full_decoding(tmp_path):
    Image.fromarray(picture(600, 450)).resize((600, 450)).save(tmp_path / "a.jpg", quality=95)
    full = Image.open(tmp_path / "a.jpg").convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(load_image(tmp_path / "a.jpg", Preprocessing(64)).astype(int) - np.asarray(full)).mean() < 1.5


def test_a_bad_file_is_reported_with_its_place_and_nothing_is_written(files, tmp_path):
    files[3].write_bytes(b"")
    files[5].write_bytes(files[5].read_bytes()[:300])
    files[7].write_text("no image")
    files[9].unlink()
    faults = pack_images(files, tmp_path / "out" / "images.npy", Preprocessing(32))
    assert [(fault.place, fault.kind) for fault in faults] == [
        (3, "empty_image"),
        (5, "damaged_image"),
        (7, "not_an_image"),
        (9, "missing_image"),
    ]
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_images_that_may_be_skipped_leave_no_gap(files, tmp_path, processes):
    whole, smaller = tmp_path / "whole.npy", tmp_path / "smaller.npy"
    pack_images(files, whole, Preprocessing(32))
    files[0].write_bytes(b"")
    files[40].write_bytes(b"")
    faults = pack_images(files, smaller, Preprocessing(32), policy={"empty_image": "skip"}, processes=processes)
    assert [fault.place for fault in faults] == [0, 40]
    np.testing.assert_array_equal(np.load(smaller), np.delete(np.load(whole), [0, 40], axis=0))
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_looking_without_a_target_finds_the_same_and_writes_nothing(files, tmp_path):
    files[3].write_bytes(b"")
    before = set(tmp_path.rglob("*"))
    assert pack_images(files, None, Preprocessing(32)) == pack_images(files, tmp_path / "out.npy", Preprocessing(32))
    assert set(tmp_path.rglob("*")) == before


def test_resize_modes():
    wide = np.zeros((40, 80, 3), dtype=np.uint8)
    wide[:, :20], wide[:, 20:60], wide[:, 60:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = encode(Image.fromarray(wide))
    squash, crop, pad = (load_image(data, Preprocessing(40, mode)) for mode in ("squash", "crop", "pad"))
    assert squash[20, 2].tolist() == [255, 0, 0]
    assert squash[20, 37].tolist() == [0, 0, 255]
    assert crop[:, 2:38].reshape(-1, 3).tolist() == [[0, 255, 0]] * (40 * 36)
    assert pad[2, 20].tolist() == [0, 0, 0]
    assert pad[20, 2].tolist() == [255, 0, 0]


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_pixel_format_becomes_rgb():
    grey = Image.new("L", (40, 40), 100)
    assert (load_image(encode(grey), Preprocessing(32)) == 100).all()
    deep = Image.fromarray(np.full((40, 40), 100 * 257, dtype=np.uint16))
    assert (load_image(encode(deep), Preprocessing(32)) == 100).all()
    clear = Image.new("RGBA", (40, 40), (10, 20, 30, 0))
    assert (load_image(encode(clear), Preprocessing(32)) == 255).all()
    palette = Image.new("RGB", (40, 40), (200, 40, 10)).quantize(4)
    assert np.abs(load_image(encode(palette), Preprocessing(32)).astype(int) - [200, 40, 10]).max() <= 2
    cmyk = Image.new("RGB", (40, 40), (200, 40, 10)).convert("CMYK")
    assert np.abs(load_image(encode(cmyk, "TIFF"), Preprocessing(32)).astype(int) - [200, 40, 10]).max() <= 2


def test_exif_orientation_is_obeyed():
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    upright, turned = picture(), picture()[::-1, ::-1]
    shown = load_image(encode(Image.fromarray(turned), "PNG", exif=exif), Preprocessing(32))
    assert (shown == load_image(encode(Image.fromarray(upright)), Preprocessing(32))).all()


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    data = encode(Image.new("1", (400, 400)))
    monkeypatch.setattr("exp_tools.data.images.limits.MAX_PIXELS", 100_000)
    with pytest.raises(ImageFault, match="400x400 pixels are more than 100,000"):
        load_image(data, Preprocessing(32))


def test_images_are_found_in_any_layout(tmp_path):
    for name in ("part_1/a.jpg", "part_2/deep/b.JPEG", "c.png", "part_1/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert {key: path.name for key, path in find_images(tmp_path).items()} == {
        "a": "a.jpg",
        "b": "b.JPEG",
        "c": "c.png",
    }


def test_real_images_pack(real_data, tmp_path):
    files = sorted((real_data / "ham10000-mini" / "HAM10000_images_part_1").iterdir())[:6]
    assert pack_images(files, tmp_path / "out.npy", Preprocessing(64)) == []
    packed = np.load(tmp_path / "out.npy")
    for place, file in enumerate(files):
        full = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
        assert np.abs(packed[place].astype(int) - np.asarray(full)).mean() < 3


def test_progress_is_a_line_per_minute_where_there_is_no_terminal(capsys, monkeypatch):
    from exp_tools.io import ProgressBar

    now = iter(range(0, 100_000, 25))
    monkeypatch.setattr("tqdm.std.time", lambda: next(now))
    bar = ProgressBar(total=8, desc="decode", unit="image")
    for _ in range(8):
        bar.update()
    bar.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert 2 <= len(lines) <= 5
    assert all(line.startswith("decode: ") for line in lines)
    monkeypatch.undo()
    with ProgressBar(total=3, desc="quick") as quick:
        quick.update(3)
    assert capsys.readouterr().err == ""
