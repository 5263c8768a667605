"""Near-duplicates: which views of a picture are found, what is not taken for one, and what follows for the groups."""

import functools
import io
import zipfile

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exp_tools.data.duplicates import retrieval
from exp_tools.data.duplicates.contact_sheet import draw_pairs
from exp_tools.data.duplicates.groups import JUDGES, group_ids, known_pairs, name_pairs, pair_report
from exp_tools.data.duplicates.keypoints import compare, find_keypoints, mirrored
from exp_tools.data.duplicates.pairs import photograph
from exp_tools.data.duplicates.retrieval import MAX_IN_WORD, passed_over
from exp_tools.data.duplicates.search import find_duplicates, identical_files
from exp_tools.data.synthetic.scene import draw_lesion
from exp_tools.io import MAKER

WIDTH, HEIGHT = 300, 225  # the size that key points are looked for in


@functools.cache
def skin(seed: int) -> np.ndarray:
    """A piece of blotched skin, uint8 [640, 640, 3]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(640, 640)).astype(np.float32)
    field = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 3, 6, 12))
    return np.clip(150 + 40 * field[..., None] / field.std() * (0.6, 1.0, 1.1), 0, 255).astype(np.uint8)


def view(
    piece: np.ndarray, *, turn: float = 0, scale: float = 1, mirror: bool = False, gain: float = 1, offset: float = 0
) -> np.ndarray:
    """What a camera above the middle of the piece sees, uint8 [225, 300, 3]; mirrored first, then turned clockwise."""
    piece = piece[:, ::-1] if mirror else piece
    centre = (len(piece) - 1) / 2
    matrix = cv2.getRotationMatrix2D((centre, centre), -turn, scale)
    matrix[:, 2] += np.array([WIDTH, HEIGHT]) / 2 - 0.5 - centre
    seen = cv2.warpAffine(np.ascontiguousarray(piece), matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    return np.clip(seen * gain + offset, 0, 255).astype(np.uint8)


def pairs_of(found: pd.DataFrame) -> set[tuple[int, int]]:
    accepted = found[found["accepted"]]
    return set(zip(accepted["first"], accepted["second"], strict=True))


@pytest.mark.parametrize(
    ("change", "rotation", "scale"),
    [
        ({"turn": 180}, 180, 1),
        ({"turn": 37}, 37, 1),
        ({"mirror": True}, 0, 1),
        ({"mirror": True, "turn": 90}, 90, 1),
        ({"scale": 1.4}, 0, 1.4),
        ({"scale": 0.7, "turn": -60}, -60, 0.7),
        ({"gain": 0.6, "offset": 40}, 0, 1),
    ],
)
def test_a_changed_view_of_a_picture_is_found_and_its_transform_told(change, rotation, scale):
    pictures = [view(skin(seed)) for seed in range(8)]
    pictures[5] = view(skin(2), **change)
    found = find_duplicates(np.stack(pictures))
    assert pairs_of(found) == {(2, 5)}
    pair = found[found["accepted"]].iloc[0]
    assert (pair["rotation"] - rotation + 180) % 360 - 180 == pytest.approx(0, abs=2)
    assert pair["scale"] == pytest.approx(scale, rel=0.03)
    assert pair["mirrored"] == change.get("mirror", False)
    assert not pair["exact"]


def test_drawn_lesions_unite_by_lesion_and_not_by_diagnosis():
    lesions = [("nv", 1), ("nv", 2), ("mel", 3), ("bkl", 4), ("bcc", 5), ("nv", 6)]
    pictures = [draw_lesion(dx, lesion_seed=seed, view_seed=seed)[0] for dx, seed in lesions]
    pictures.append(draw_lesion("mel", lesion_seed=3, view_seed=77)[0])
    assert pairs_of(find_duplicates(np.stack(pictures))) == {(2, 6)}


def ruler(picture: np.ndarray) -> np.ndarray:
    """The picture with the marks and the print of one ruler along its lower edge."""
    picture = picture.copy()
    for number in range(19):
        at = 6 + 12 * number
        cv2.line(picture, (at, HEIGHT - 1), (at, HEIGHT - (7 if number % 5 == 0 else 4)), (20, 20, 20), 1)
    cv2.putText(picture, "3Gen DermLite 10 mm", (4, HEIGHT - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1)
    return picture


def test_a_ruler_alone_does_not_unite_two_pictures():
    one, two = (ruler(np.full((HEIGHT, WIDTH, 3), shade, np.uint8)) for shade in (120, 125))
    fit = compare(find_keypoints(one), find_keypoints(two))
    assert fit.inliers >= 12, "the marks must agree, or this test proves nothing"
    found = find_duplicates(np.stack([one, two, view(skin(3))]))
    assert list(zip(found["first"], found["second"], found["accepted"], strict=True)) == [(0, 1, False)]


def test_a_black_surround_gives_no_key_points():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    field = np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < 96
    places = find_keypoints(view(skin(4)) * field[..., None].astype(np.uint8)).places
    assert len(places) > 50
    assert np.hypot(*(places - (WIDTH / 2, HEIGHT / 2)).T).max() < 91


def test_mirrored_key_points_are_those_of_the_mirrored_picture():
    picture = view(skin(5))
    without_looking, looked_at = mirrored(find_keypoints(picture)), find_keypoints(picture[:, ::-1].copy())
    # OpenCV's key points lie a quarter of a pixel too far to the right: WIDTH - 1 plus twice that.
    nearest = np.hypot(*(without_looking.places[:, None] + (WIDTH - 0.5, 0) - looked_at.places).transpose(2, 0, 1))
    rows = np.flatnonzero(nearest.min(axis=1) < 0.2)
    assert len(rows) > 100
    difference = without_looking.descriptors[rows].astype(int) - looked_at.descriptors[nearest[rows].argmin(axis=1)]
    assert np.median(np.abs(difference).mean(axis=1)) < 4  # other descriptors are about 25 apart


def test_equal_pictures_are_exact_also_without_key_points():
    blank = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    found = find_duplicates(np.stack([view(skin(1)), blank, view(skin(2)), blank, view(skin(1))]))
    assert pairs_of(found) == {(1, 3), (0, 4)}
    assert found["exact"].all()
    assert found.set_index("first")["inliers"][1] == 0
    assert found.set_index("first")["inliers"][0] > 100


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_pictures_without_key_points_are_no_error(number):
    shades = np.arange(number, dtype=np.uint8)[:, None, None, None] * np.ones((1, HEIGHT, WIDTH, 3), np.uint8)
    found = find_duplicates(shades)
    assert found.empty
    assert list(found) == list(find_duplicates(np.stack([view(skin(1))] * 2)))


def test_the_result_depends_on_neither_processes_nor_the_order_of_work():
    pictures = np.stack([view(skin(place % 60), turn=place) for place in range(70)])
    alone = find_duplicates(pictures, seed=3)
    pd.testing.assert_frame_equal(alone, find_duplicates(pictures, seed=3, processes=2))
    assert pairs_of(alone) == {(place, place + 60) for place in range(10)}
    backwards = pairs_of(find_duplicates(lambda place, side: pictures[69 - place], 70, seed=4))
    assert {(69 - second, 69 - first) for first, second in backwards} == pairs_of(alone)


def test_identical_files_are_found_by_their_bytes(tmp_path):
    for name, content in {"a": b"one", "b": b"two", "c": b"one", "d": b"", "e": b"one", "f": b"three"}.items():
        (tmp_path / name).write_bytes(content)
    assert identical_files([tmp_path / name for name in "abcdef"]) == [(0, 2), (0, 4)]


PAIRS = pd.DataFrame(
    [("i1", "i4", 30, True), ("i5", "i4", 22, True), ("i2", "i6", 12, False), ("i0", "elsewhere", 90, True)],
    columns=["image_id_1", "image_id_2", "inliers", "accepted"],
)
IMAGES = ["i0", "i1", "i2", "i3", "i4", "i5", "i6"]
LESIONS = ["L3", "L9", "L5", "L9", "L4", "", "L6"]


def test_groups_are_what_lesions_and_accepted_pairs_connect():
    """i1 and i3 share L9; i1-i4 unites L9 with L4; i5, without lesion, joins; the rejected i2-i6 stay apart."""
    assert list(group_ids(LESIONS, IMAGES, PAIRS)) == ["L3", "L4", "L5", "L4", "L4", "L4", "L6"]


def test_groups_without_a_pair_are_the_lesions():
    assert list(group_ids(LESIONS, IMAGES, PAIRS[:0])) == ["L3", "L9", "L5", "L9", "L4", "i5", "L6"]


def test_pairs_without_the_column_accepted_all_count():
    groups = group_ids(LESIONS, IMAGES, PAIRS.drop(columns="accepted"))
    assert list(groups) == ["L3", "L4", "L5", "L4", "L4", "L4", "L5"]


def test_names_are_given_and_identical_files_added():
    found = find_duplicates(np.stack([view(skin(1)), view(skin(2)), view(skin(1), turn=20), view(skin(3))]))
    pairs = name_pairs(found, ["p", "q", "r", "s"], identical=[(1, 3)])
    rows = [(row.image_id_1, row.image_id_2, row.accepted, row.identical) for row in pairs.itertuples()]
    assert rows == [("p", "r", True, False), ("q", "s", True, True)]
    assert pairs["inliers"].iloc[0] > 50
    assert pairs["inliers"].iloc[1] == 0


def labels() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": IMAGES,
            "lesion_id": ["L3", "L9", "L5", "L9", "L4", "L4", "L6"],
            "dx": ["nv", "nv", "mel", "nv", "mel", "mel", "mel"],
            "sex": ["male", "male", "unknown", "male", "female", "female", "male"],
            "age": [30, 45, 50, 45, 40, np.nan, 65],
            "localization": ["back", "back", "unknown", "back", "face", "face", "back"],
        }
    )


def test_the_report_tells_what_agrees():
    report = pair_report(labels(), PAIRS).set_index(["image_id_1", "image_id_2"])
    assert list(report.index) == [("i1", "i4"), ("i5", "i4"), ("i2", "i6")]
    assert list(report["same_lesion"]) == [False, True, False]
    assert list(report["same_dx"]) == [False, True, True]
    assert list(report["same_sex"].astype(object).fillna("?")) == [False, True, "?"]
    assert list(report["same_site"].astype(object).fillna("?")) == [False, True, "?"]
    assert list(report["age_difference"].fillna(-1)) == [5, -1, 15]
    assert list(report.loc[("i1", "i4"), ["lesion_1", "lesion_2", "dx_1", "dx_2"]]) == ["L9", "L4", "nv", "mel"]
    assert list(report["accepted"]) == [True, True, False]
    assert not report["identical"].any()


def test_the_contact_sheet_shows_pairs_of_different_lesions(tmp_path):
    colours = {"i1": (255, 0, 0), "i4": (0, 255, 0), "i2": (0, 0, 255), "i6": (255, 255, 0), "i5": (255, 0, 255)}

    def picture(image_id: str) -> np.ndarray:
        return np.full((150, 200, 3), colours[image_id], np.uint8)

    draw_pairs(tmp_path / "sheet.png", picture, pair_report(labels(), PAIRS))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    areas = {image_id: int((sheet == colour).all(axis=2).sum()) for image_id, colour in colours.items()}
    assert areas == {"i1": 30000, "i4": 30000, "i2": 30000, "i6": 30000, "i5": 0}
    rows = {
        image_id: np.flatnonzero((sheet == colour).all(axis=2).any(axis=1))[:1] for image_id, colour in colours.items()
    }
    assert rows["i1"] == rows["i4"] < rows["i2"] == rows["i6"], "accepted above rejected"


def test_the_shipped_list_of_ham10000_holds_pairs_of_its_images():
    pairs = known_pairs("ham10000")
    assert list(pairs) == ["image_id_1", "image_id_2", "inliers", "size", "judged"]
    assert set(pairs["judged"]) == {"geometry", "published", "by eye"} <= set(JUDGES)
    assert (pairs["judged"] == "published").sum() == 20
    ids = pairs[["image_id_1", "image_id_2"]]
    assert ids.map(lambda name: 24306 <= int(name.removeprefix("ISIC_00")) <= 34320).all(axis=None)
    assert (pairs["image_id_1"] < pairs["image_id_2"]).all()
    assert not ids.duplicated().any()
    named = set(ids.itertuples(index=False, name=None))
    assert {("ISIC_0024366", "ISIC_0029861"), ("ISIC_0024777", "ISIC_0029938")} <= named


def test_the_share_of_key_points_in_crowded_words():
    assert passed_over(np.repeat([3, 5, 9], [MAX_IN_WORD, MAX_IN_WORD + 1, 2])) == (MAX_IN_WORD + 1) / (
        2 * MAX_IN_WORD + 3
    )


def test_a_search_that_passes_over_many_key_points_says_so(monkeypatch, capsys):
    pictures = np.stack([view(skin(1)), view(skin(2)), view(skin(1), turn=30)])
    assert pairs_of(find_duplicates(pictures)) == {(0, 2)}
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(retrieval, "MAX_IN_WORD", 0)
    find_duplicates(pictures)
    assert "passes over 100% of the key points" in capsys.readouterr().err


def test_a_set_without_a_list_has_none():
    assert known_pairs("somebody's own") is None


def test_real_photographs_of_one_lesion_are_found_and_of_others_not(real_data):
    """Both byte-identical pairs, a close and a zoomed pair of different lesion ids, among other images of HAM10000."""
    archive = real_data / "ham10000-200x150.zip"
    if not archive.is_file():
        pytest.skip("no archive of small HAM10000 images")
    same = [(24366, 29861), (24777, 29938), (27027, 29036), (33490, 33631), (25654, 29880)]
    numbers = [number for pair in same for number in pair] + list(range(24306, 24346))
    with zipfile.ZipFile(archive) as images:
        contents = [images.read(f"ISIC_{number:07d}.jpg") for number in numbers]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents])
    found = find_duplicates(pictures)
    assert pairs_of(found) == {(2 * place, 2 * place + 1) for place in range(len(same))}
    assert list(found.loc[found["exact"], "first"]) == [0, 2]


@pytest.mark.parametrize(
    ("name", "size", "side", "found"),
    [
        ("a.jpg", (600, 450), 300, (300, 225)),
        ("a.jpg", (450, 600), 300, (225, 300)),
        ("a.png", (1200, 900), 300, (300, 225)),
        ("a.jpg", (200, 150), 300, (200, 150)),  # never enlarged
    ],
)
def test_an_image_is_read_in_its_own_proportions(tmp_path, name, size, side, found):
    path = tmp_path / name
    Image.fromarray(np.resize(skin(1), (*size[::-1], 3))).save(path)
    assert photograph(str(path), side).shape == (*found[::-1], 3)


def test_a_killed_search_leaves_nothing_for_good(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f".duplicates.x1.{MAKER.rpartition('-')[0]}-999999999.tmp"
    (left / "points").mkdir(parents=True)
    find_duplicates([np.zeros((40, 40, 3), np.uint8)] * 2, processes=1)
    assert list(tmp_path.iterdir()) == []
