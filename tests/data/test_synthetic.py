"""The embedded sample data set: HAM10000's shape, the same bytes each time, pictures that can be used."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exp_tools.data.synthetic import generate as sample_module
from exp_tools.data.synthetic.generate import draw_sample_image, sample_table, write_sample
from exp_tools.data.synthetic.scene import draw_lesion
from exp_tools.errors import UserError
from exp_tools.taxonomy import DIAGNOSES

HAM_IMAGES = {"nv": 6705, "mel": 1113, "bkl": 1099, "bcc": 514, "akiec": 327, "vasc": 142, "df": 115}


@pytest.fixture(scope="module")
def full_size() -> pd.DataFrame:
    return sample_table(10_015, seed=0)


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, images=21, seed=5)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_table_of_full_size_has_the_class_counts_of_ham10000(full_size):
    assert full_size["dx"].value_counts().to_dict() == HAM_IMAGES


def test_table_has_the_columns_of_ham10000_and_ids_of_its_own(full_size):
    assert list(full_size.columns) == ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
    assert full_size["image_id"].is_unique
    assert full_size["image_id"].str.fullmatch(r"SYN_\d{7}").all()
    assert full_size["lesion_id"].str.fullmatch(r"SYL_\d{7}").all()


def test_lesions_have_as_many_images_as_in_ham10000(full_size):
    views = full_size["lesion_id"].value_counts()
    assert len(views) == pytest.approx(7470, rel=0.03)
    assert (views == 1).sum() == pytest.approx(5514, rel=0.05)
    assert (views == 2).sum() == pytest.approx(1423, rel=0.1)
    assert (views == 3).sum() == pytest.approx(490, rel=0.15)
    assert 4 <= views.max() <= 6


def test_what_is_known_of_a_lesion_is_the_same_on_all_its_rows(full_size):
    known = full_size.drop(columns="image_id").drop_duplicates()
    assert known["lesion_id"].is_unique


def test_images_of_a_lesion_lie_next_to_each_other(full_size):
    runs = (full_size["lesion_id"] != full_size["lesion_id"].shift()).sum()
    assert runs == full_size["lesion_id"].nunique()


def test_quirks_of_ham10000(full_size):
    age = full_size["age"].dropna()
    assert 0.003 < full_size["age"].isna().mean() < 0.009
    assert (age % 5 == 0).all()
    assert age.between(0, 85).all()
    assert set(full_size["sex"]) == {"male", "female", "unknown"}
    assert full_size["localization"].nunique() == 15
    assert "unknown" in set(full_size["localization"])
    assert full_size.loc[full_size["dx_type"] == "follow_up", "dx"].unique().tolist() == ["nv"]
    malignant = full_size["dx"].map(lambda code: DIAGNOSES[code].malignant)
    assert set(full_size.loc[malignant, "dx_type"]) == {"histo"}
    assert set(full_size["dx_type"]) == {"histo", "follow_up", "consensus", "confocal"}


def test_class_dependent_ages(full_size):
    age = full_size.groupby("dx")["age"].mean()
    assert age["nv"] < age["mel"] - 8
    assert age["nv"] < age["akiec"] - 15


@pytest.mark.parametrize("images", [300, 1000, 1400])
def test_every_class_has_nine_lesions_in_a_roomy_sample(images):
    for seed in range(5):
        table = sample_table(images, seed)
        lesions = table.groupby("dx")["lesion_id"].nunique()
        assert len(table) == images
        assert set(lesions.index) == set(DIAGNOSES)
        assert lesions.min() >= 9


@pytest.mark.parametrize("images", [1, 2, 7, 20, 299])
def test_tiny_samples_have_the_asked_size(images):
    table = sample_table(images, seed=1)
    assert len(table) == images
    assert set(table["dx"]) <= set(DIAGNOSES)


def test_no_sample_without_images():
    with pytest.raises(UserError, match="at least 1 image"):
        sample_table(0, seed=1)


def test_table_depends_on_the_seed_alone():
    pd.testing.assert_frame_equal(sample_table(400, seed=3), sample_table(400, seed=3))
    assert not sample_table(400, seed=3).equals(sample_table(400, seed=4))


def test_official_layout(sample):
    table = pd.read_csv(sample / "HAM10000_metadata.csv")
    parts = [{path.stem for path in (sample / f"HAM10000_images_part_{part}").glob("*.jpg")} for part in (1, 2)]
    assert [len(part) for part in parts] == [10, 11]
    assert parts[0] | parts[1] == set(table["image_id"])
    masks = {path.stem for path in (sample / "HAM10000_segmentations_lesion_tschandl").glob("*.png")}
    assert masks == {f"{image_id}_segmentation" for image_id in table["image_id"]}
    assert len(files(sample)) == 43  # no temporary file is left
    pd.testing.assert_frame_equal(table, sample_table(21, seed=5), check_dtype=False)


def test_pictures_are_rgb_jpegs_of_600_by_450(sample):
    for path in sample.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (600, 450))


def test_same_bytes_whatever_the_number_of_processes(sample, tmp_path):
    write_sample(tmp_path, images=21, seed=5, processes=2)
    assert files(tmp_path) == files(sample)


def test_another_seed_draws_other_pictures_and_replaces_the_old_ones(tmp_path):
    write_sample(tmp_path, images=4, seed=1)
    before = files(tmp_path)
    write_sample(tmp_path, images=3, seed=2)
    after = files(tmp_path)
    assert len(after) == 7
    assert not set(before.values()) & set(after.values())


def test_interrupted_write_leaves_no_table(tmp_path, monkeypatch):
    write_sample(tmp_path, images=3, seed=1)
    drawn = []

    def interrupted(*args, **kwargs):
        drawn.append(args)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw_lesion(*args, **kwargs)

    monkeypatch.setattr(sample_module, "draw_lesion", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, images=5, seed=1)
    assert len(list(tmp_path.rglob("*.jpg"))) == 2
    assert list(tmp_path.rglob("*.csv")) == []


@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_lesion_differs_from_the_skin_around_it(diagnosis):
    contrasts = []
    for seed in range(4):
        image, mask = draw_lesion(diagnosis, lesion_seed=seed, view_seed=seed)
        assert (image.dtype, image.shape) == (np.uint8, (450, 600, 3))
        assert (mask.dtype, mask.shape) == (bool, (450, 600))
        assert 0.01 < mask.mean() < 0.6
        outside = cv2.dilate(mask.astype(np.uint8), np.ones((61, 61), np.uint8)).astype(bool) & ~mask
        contrasts.append(np.abs(image[mask].mean(axis=0) - image[outside].mean(axis=0)).max())
    assert np.median(contrasts) > 15


def test_mask_of_a_written_picture_can_be_drawn_again(sample):
    row = sample_table(21, seed=5).iloc[3]
    image, mask = draw_sample_image(row["lesion_id"], row["image_id"], row["dx"], seed=5)
    written = cv2.imread(str(next(sample.rglob(f"{row['image_id']}.jpg"))))[..., ::-1]
    assert np.abs(written.astype(int) - image).mean() < 5  # but for the JPEG
    assert mask.any()


def test_views_of_a_lesion_resemble_each_other_more_than_two_lesions():
    """Mean colour of the lesion over that of the skin: light changes both, the lesion only the first."""

    def contrast(lesion_seed: int, view_seed: int) -> np.ndarray:
        image, mask = draw_lesion("nv", lesion_seed=lesion_seed, view_seed=view_seed)
        return np.log(np.median(image[mask], axis=0) + 1) - np.log(np.median(image[~mask], axis=0) + 1)

    same = [np.abs(contrast(seed, 2 * seed) - contrast(seed, 2 * seed + 1)).max() for seed in range(8)]
    other = [np.abs(contrast(seed, 2 * seed) - contrast(seed + 1, 2 * seed + 1)).max() for seed in range(8)]
    assert np.median(same) < 0.5 * np.median(other)
    first, _ = draw_lesion("nv", lesion_seed=1, view_seed=1)
    second, _ = draw_lesion("nv", lesion_seed=1, view_seed=2)
    assert np.abs(first.astype(int) - second).mean() > 5
