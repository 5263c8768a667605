"""Lesion masks: found wherever a set keeps them, packed in the geometry of the images, and no mask stops anything."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import CODES, DataProject, ham, save
from PIL import Image

from exp_tools.data.images.decode import load_image
from exp_tools.data.images.masks import PackedMasks, find_masks, load_mask, pack_masks
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.synthetic.generate import draw_sample_image


def save_mask(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


@pytest.fixture
def pair(tmp_path):
    """An image 48x36 whose lesion, columns 8 to 19 and rows 6 to 29, is white on black, and its mask."""
    values = np.zeros((36, 48), np.uint8)
    values[6:30, 8:20] = 255
    image = save_mask(tmp_path / "x.png", np.repeat(values[..., None], 3, axis=2))
    return save_mask(tmp_path / "x_segmentation.png", values), image


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size", [48, 24, 96, 31])
def test_a_mask_lies_on_its_image(pair, resize, size):
    mask, image = pair
    square = load_mask(mask, image, Preprocessing(size, resize))
    assert (square.dtype, square.shape) == (bool, (size, size))
    bright = load_image(image, Preprocessing(size, resize))[..., 0] > 127
    edge = 2 * (24 + 12) / (24 * 12)  # perimeter over area: nearest and bicubic may part by a pixel at the border
    assert (square != bright).sum() <= edge * square.sum()
    assert square.mean() == pytest.approx({"squash": 1 / 6, "crop": 12 * 24 / 36**2, "pad": 1 / 8}[resize], rel=0.12)


def test_squashed_by_nearest_neighbours_to_the_place_that_it_has(pair):
    square = load_mask(*pair, Preprocessing(12))  # every 4th column, every 3rd row
    expected = np.zeros((12, 12), bool)
    expected[2:10, 2:5] = True
    np.testing.assert_array_equal(square, expected)


@pytest.mark.parametrize("top", [1, 255])
def test_what_is_not_zero_is_lesion_whatever_the_scale(tmp_path, top):
    image = save(tmp_path / "x.jpg")
    values = np.zeros((36, 48))
    values[:18] = top
    square = load_mask(save_mask(tmp_path / "x_lesion.png", values), image, Preprocessing(4))
    np.testing.assert_array_equal(square, [[True] * 4] * 2 + [[False] * 4] * 2)


def test_an_empty_mask_has_no_lesion(tmp_path):
    mask = save_mask(tmp_path / "x_lesion.png", np.zeros((36, 48)))
    assert not load_mask(mask, save(tmp_path / "x.jpg"), Preprocessing(8)).any()


def test_a_mask_of_another_size_with_the_same_proportions_fits(tmp_path):
    values = np.zeros((72, 96))
    values[:, :48] = 255
    square = load_mask(save_mask(tmp_path / "x_lesion.png", values), save(tmp_path / "x.jpg"), Preprocessing(4))
    np.testing.assert_array_equal(square, [[True, True, False, False]] * 4)


def test_faults_are_said(tmp_path):
    image = save(tmp_path / "x.jpg")
    other = save_mask(tmp_path / "y.png", np.zeros((36, 36)))
    with pytest.raises(ValueError, match="other proportions than its image: 36x36, its image 48x36"):
        load_mask(other, image, Preprocessing(8))
    other.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot be read"):
        load_mask(other, image, Preprocessing(8))


def test_masks_are_found_by_the_ids_of_their_images(tmp_path):
    save(tmp_path / "a/ISIC_1.jpg")
    for name in (
        "a/ISIC_1_segmentation.png",
        "b/ISIC_2_Segmentation.PNG",
        "b/ISIC_1_segmentation.png",
        "b/._ISIC_3_x.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / "mask.png").rename(tmp_path / name)
    found = find_masks(tmp_path, ("_segmentation", "_lesion"))
    assert {name: path.relative_to(tmp_path).as_posix() for name, path in found.items()} == {
        "ISIC_1": "a/ISIC_1_segmentation.png",
        "ISIC_2": "b/ISIC_2_Segmentation.PNG",
    }
    assert find_masks(tmp_path, ()) == {}


@pytest.mark.parametrize("processes", [1, 2])
def test_packed_and_read_back(tmp_path, processes):
    """Every third image has no mask, one mask is damaged; 11 is not a multiple of 8."""
    generator = np.random.default_rng(0)
    ids, files, masks, expected = [], [], {}, {}
    for row in range(60):
        ids.append(f"I{row}")
        files.append(str(save(tmp_path / f"I{row}.jpg", row)))
        if row % 3:
            values = generator.random((36, 48)) < 0.5
            masks[ids[-1]] = save_mask(tmp_path / f"I{row}_segmentation.png", values * 255)
            expected[row] = load_mask(masks[ids[-1]], files[-1], Preprocessing(11))
    masks["I4"].write_bytes(b"")
    del expected[4]
    target = tmp_path / "masks.npy"
    left_out = pack_masks(target, ids, files, masks, Preprocessing(11), processes=processes)
    assert [one.file for one in left_out] == ["I4_segmentation.png"]
    packed = PackedMasks(target)
    assert packed.rows.tolist() == list(expected)
    for row in range(60):
        found = packed.of(row)
        assert (found is None) == (row not in expected)
        if found is not None:
            np.testing.assert_array_equal(found, expected[row])


def test_a_set_without_masks_gives_a_file_without_rows(tmp_path):
    pack_masks(tmp_path / "masks.npy", ["a"], ["a.jpg"], {}, Preprocessing(8), processes=1)
    assert PackedMasks(tmp_path / "masks.npy").rows.tolist() == []
    assert PackedMasks(tmp_path / "masks.npy").of(0) is None


def packed_masks(project: DataProject) -> PackedMasks:
    return PackedMasks(project.folder / "data/prepared/masks.npy")


def test_the_sample_set_has_the_mask_of_every_picture(tmp_path, monkeypatch):
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__sample_images=20)
    project.run("download", "prepare")
    folder = project.folder / "data/raw/HAM10000_segmentations_lesion_tschandl"
    assert len(list(folder.iterdir())) == 20
    row = pd.read_csv(project.folder / "data/raw/HAM10000_metadata.csv").iloc[7]
    _, mask = draw_sample_image(row["lesion_id"], row["image_id"], row["dx"], 0)
    with Image.open(folder / f"{row['image_id']}_segmentation.png") as stored:
        assert stored.size == (600, 450)
        np.testing.assert_array_equal(np.asarray(stored.convert("L")), mask * 255)
    assert packed_masks(project).rows.tolist() == list(range(20))
    assert project.metrics("data")["lesion_masks"] == 20
    assert project.problems() == []
    small = packed_masks(project).of(7)
    assert small.mean() == pytest.approx(mask.mean(), rel=0.1)


def test_masks_of_a_copy_change_neither_labels_nor_images(tmp_path, monkeypatch):
    """HAM10000's folder of masks beside the images, one mask of no image, one of other proportions."""
    mine = ham(tmp_path / "mine")
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__source="ham10000", data__dir=mine)
    project.run("download", "prepare")
    before = {name: (project.folder / name).read_bytes() for name in written_by_prepare()}
    assert packed_masks(project).rows.tolist() == []

    folder = mine / "HAM10000_segmentations_lesion_tschandl"
    for number in (3, 20, 99):
        values = np.zeros((36, 48))
        values[:, : 2 * number % 48] = 255
        save_mask(folder / f"ISIC_{number:07d}_segmentation.png", values)
    save_mask(folder / "ISIC_0000005_segmentation.png", np.zeros((20, 20)))
    project.run("download", "prepare")
    assert {name: (project.folder / name).read_bytes() for name in before} == before
    labels = project.labels()
    assert labels["image_id"].iloc[packed_masks(project).rows].tolist() == ["ISIC_0000003", "ISIC_0000020"]
    assert packed_masks(project).of(3).mean() == pytest.approx(6 / 48, abs=0.02)
    assert project.metrics("data")["lesion_masks"] == 2
    assert [kind for kind, _ in project.problems()] == ["unexpected_count"]  # a subset; no mask is an unlisted image


def written_by_prepare() -> list[str]:
    return [f"data/prepared/{name}" for name in ("labels.csv", "images.npy", "problems.csv", "duplicates.csv")]


def test_a_mask_that_cannot_be_used_is_said(tmp_path, monkeypatch, capsys):
    mine = ham(tmp_path / "mine")
    save_mask(mine / "masks/ISIC_0000005_segmentation.png", np.zeros((20, 20)))
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__source="ham10000", data__dir=mine)
    project.run("download", "prepare")
    said = capsys.readouterr().err
    assert "the mask ISIC_0000005_segmentation.png is not used: it has other proportions than its image" in said


def test_a_limit_keeps_the_masks_of_what_it_keeps(tmp_path, monkeypatch):
    mine = ham(tmp_path / "mine")
    for number in range(28):
        save_mask(mine / f"masks/ISIC_{number:07d}_segmentation.png", np.ones((36, 48)))
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__source="ham10000", data__dir=mine, data__limit=20)
    project.run("download", "prepare")
    count = len(project.labels())
    assert count == 14
    assert packed_masks(project).rows.tolist() == list(range(count))
    assert len(list((project.folder / "data/raw/masks").iterdir())) == count


def test_masks_of_ph2_in_class_folders_are_no_images(tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    for number, folder in enumerate(("nev", "nev", "atypical", "atypical", "mel", "mel")):
        save(mine / folder / f"IMD{number}.bmp", number)
        save_mask(mine / folder / f"IMD{number}_lesion.bmp", np.ones((36, 48)))
    project = DataProject(tmp_path / "p", monkeypatch.chdir, data__source="ph2", data__dir=mine)
    project.run("download", "prepare")
    assert project.labels()["image_id"].tolist() == [f"IMD{number}" for number in (2, 3, 4, 5, 0, 1)]
    assert packed_masks(project).rows.tolist() == list(range(6))


def test_masks_of_real_ph2(real_data, tmp_path, monkeypatch):
    project = DataProject(
        tmp_path / "p",
        monkeypatch.chdir,
        data__source="ph2",
        data__dir=real_data / "PH2Dataset",
        prepare__on_problem={**project_policy(), "missing_image": "skip"},
    )
    project.run("download", "prepare")
    labels, masks = project.labels(), packed_masks(project)
    assert len(labels) == 15
    assert masks.rows.tolist() == list(range(15))
    images = project.images()
    darker = [images[row][masks.of(row)].mean() < images[row][~masks.of(row)].mean() for row in range(15)]
    assert sum(darker) >= 14  # a pigmented lesion is darker than skin; the black rim of a dermatoscope is darker yet


def project_policy() -> dict:
    import yaml
    from helpers.datasets import ROOT

    return yaml.safe_load((ROOT / "params.yaml").read_text())["prepare"]["on_problem"]


def test_combined_finds_the_masks_of_both(tmp_path, monkeypatch):
    first, second = ham(tmp_path / "ham"), tmp_path / "ph2"
    save_mask(first / "masks/ISIC_0000001_segmentation.png", np.ones((36, 48)))
    for number, folder in enumerate(("nev", "atypical", "mel")):
        save(second / folder / f"IMD{number}.bmp", 100 + number)
        save_mask(second / folder / f"IMD{number}_lesion.bmp", np.ones((36, 48)))
    project = DataProject(
        tmp_path / "p", monkeypatch.chdir, data__source="combined", data__dir=first, data__second_dir=second
    )
    project.run("download", "prepare")
    ids = project.labels()["image_id"]
    assert set(ids.iloc[packed_masks(project).rows]) == {"ISIC_0000001", "IMD0", "IMD1", "IMD2"}
    assert set(project.labels()["dx"]) == set(CODES)
    assert json.loads((project.folder / "metrics/data.json").read_text())["lesion_masks"] == 4
