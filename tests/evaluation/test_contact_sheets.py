"""Contact sheets: the surest mistakes first, one per lesion, counted rightly, beside the images that they are about."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from exp_tools.errors import UserError
from exp_tools.evaluation.plots.contact_sheets import draw_missed, draw_mistakes

CLASSES = ["bkl", "mel", "nv"]
# image, lesion, true class, probabilities, row in the packed images
ROWS = [
    ("I_0", "L_0", "mel", (0.1, 0.2, 0.7), 5),
    ("I_1", "L_1", "mel", (0.9, 0.08, 0.02), 3),
    ("I_2", "L_1", "mel", (0.8, 0.15, 0.05), 4),
    ("I_3", "L_2", "mel", (0.0, 1.0, 0.0), 0),
    ("I_4", "L_3", "nv", (0.0, 0.6, 0.4), 1),
    ("I_5", "L_4", "nv", (0.0, 0.1, 0.9), 2),
]


def predictions(rows=ROWS, classes=CLASSES):
    table = pd.DataFrame(
        [(image, lesion, lesion, dx, row) for image, lesion, dx, _, row in rows],
        columns=["image_id", "lesion_id", "group_id", "dx", "row"],
    )
    for number, code in enumerate(classes):
        table[f"p_{code}"] = [probabilities[number] for _, _, _, probabilities, _ in rows]
    columns = table[[f"p_{code}" for code in classes]].to_numpy()
    table["predicted"] = np.array(classes)[columns.argmax(axis=1)]
    logits = np.log(table[[f"p_{code}" for code in classes]].to_numpy() + 1e-6)
    table[[f"logit_{code}" for code in classes]] = logits
    return table.assign(
        age=[40.0, np.nan, 55.0, 60.0, 70.0, 80.0][: len(rows)], sex="female", localization="lower extremity"
    )


def packed(images=6, size=8):
    """Each image evenly grey: 10 times its row."""
    return np.broadcast_to(10 * np.arange(images, dtype=np.uint8)[:, None, None, None], (images, size, size, 3))


@pytest.fixture
def drawn(monkeypatch):
    """The axes of each file, by its name."""
    kept = {}
    savefig = Figure.savefig

    def keep(figure, path, **options):
        kept[path.name.split(".png")[0].lstrip(".")] = figure.axes[0]
        savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def texts(axes):
    return [text.get_text() for text in axes.texts]


def tiles(axes):
    """What is written below each tile, by lines, and the grey of the image above the words."""
    written = [text for text in axes.texts if text.get_text().startswith("true:")]
    shown = []
    for text in written:
        left, below = text.get_position()
        image = [one for one in axes.images if one.get_extent()[0] == left and 0 < below - one.get_extent()[2] < 0.2]
        assert len(image) == 1
        shown.append((text.get_text().split("\n"), int(image[0].get_array()[0, 0, 0])))
    assert len(shown) == len(axes.images)
    return shown


def test_mistakes_are_the_surest_ones_each_of_another_lesion(tmp_path, drawn):
    draw_mistakes(tmp_path / "m.png", packed(), predictions(), CLASSES, "sample data, test split")
    assert tiles(drawn["m"]) == [
        (["true: mel 8%", "predicted: bkl 90%", "age unknown, female, lower ex…", "I_1"], 30),
        (["true: mel 20%", "predicted: nv 70%", "40 y, female, lower extremity", "I_0"], 50),
        (["true: nv 40%", "predicted: mel 60%", "70 y, female, lower extremity", "I_4"], 10),
    ]
    counted = [text for text in texts(drawn["m"]) if not text.startswith("true:")]
    assert counted == ["bkl", "no image", "mel", "3 of 4\nimages wrong", "nv", "1 of 2\nimages wrong"]
    assert drawn["m"].get_title(loc="left").endswith("\nsample data, test split, n = 6 images")
    draw_mistakes(tmp_path / "one.png", packed(), predictions(), CLASSES, "t", per_class=1)
    assert [lines[3] for lines, _ in tiles(drawn["one"])] == ["I_1", "I_4"]


def test_missed_melanomas_are_all_images_the_surest_first(tmp_path, drawn):
    draw_missed(tmp_path / "m.png", packed(), predictions(), CLASSES, "t")
    assert [(lines[3], grey) for lines, grey in tiles(drawn["m"])] == [("I_1", 30), ("I_2", 40), ("I_0", 50)]
    title = drawn["m"].get_title(loc="left")
    assert title == "Missed melanomas: 3 of 4 images, the surest mistakes first\nt, n = 6 images"


def test_a_melanoma_that_is_flagged_or_left_to_a_human_is_not_missed(tmp_path, drawn):
    draw_missed(
        tmp_path / "m.png", packed(), predictions(), CLASSES, "t", np.array([True, False, True, True, False, True])
    )
    assert [lines[3] for lines, _ in tiles(drawn["m"])] == ["I_1"]
    assert "Missed melanomas: 1 of 4 images" in drawn["m"].get_title(loc="left")


def test_at_most_24_missed_are_drawn_and_all_are_counted(tmp_path, drawn):
    rows = [(f"I_{n:02d}", f"L_{n}", "mel", (0.6 + n / 100, 0.4 - n / 100, 0.0), n) for n in range(31)]
    rows += [(f"I_{n}", f"L_{n}", "mel", (0.0, 1.0, 0.0), n) for n in range(31, 40)]
    table = pd.concat([predictions([row]) for row in rows], ignore_index=True)
    draw_missed(tmp_path / "m.png", packed(40), table, CLASSES, "t")
    assert "31 of 40 images, the 24 surest mistakes\n" in drawn["m"].get_title(loc="left")
    assert [lines[3] for lines, _ in tiles(drawn["m"])] == [f"I_{n:02d}" for n in range(30, 6, -1)]


def test_nothing_to_show_is_said(tmp_path, drawn):
    right = predictions([ROWS[3], ROWS[5]])
    draw_missed(tmp_path / "none_missed.png", packed(), right, CLASSES, "t")
    draw_missed(tmp_path / "none.png", packed(), right[right["dx"] == "nv"], CLASSES, "t")
    draw_mistakes(tmp_path / "no_mistake.png", packed(), right, CLASSES, "t")
    assert drawn["none_missed"].get_title(loc="left").startswith("Missed melanomas: none of 1 images\n")
    assert drawn["none"].get_title(loc="left").startswith("Missed melanomas: there is none in this set to miss\n")
    assert texts(drawn["no_mistake"])[2:] == ["mel", "none of 1\nimages wrong", "nv", "none of 1\nimages wrong"]
    assert not drawn["no_mistake"].images


def test_equal_probabilities_have_an_order_and_unknown_people_are_said(tmp_path, drawn):
    rows = [("I_9", "L_9", "mel", (1.0, 0.0, 0.0), 1), ("I_8", "L_8", "mel", (1.0, 0.0, 0.0), 2)]
    table = predictions(rows).assign(sex=["unknown", ""], localization=["unknown", np.nan])
    draw_missed(tmp_path / "m.png", packed(), table, CLASSES, "t")
    below = [lines for lines, _ in tiles(drawn["m"])]
    assert [lines[3] for lines in below] == ["I_8", "I_9"]
    assert below[1][2] == "40 y, sex unknown, site unkno…"
    assert below[0][2] == "age unknown, sex unknown, sit…"


def test_the_binary_task_and_many_classes_of_long_names(tmp_path, drawn):
    rows = [("I_0", "L_0", "mel", (0.75, 0.25), 1)]
    draw_mistakes(tmp_path / "two.png", packed(), predictions(rows, ["non_mel", "mel"]), ["non_mel", "mel"], "t")
    assert tiles(drawn["two"])[0][0][:2] == ["true: mel 25%", "predicted: non_mel 75%"]
    codes = [f"a very long folder name {number}" for number in range(9)]
    rows = [(f"I_{n}", f"L_{n}", codes[n], tuple(np.eye(9)[(n + 1) % 9 if n < 4 else n]), n % 6) for n in range(6)]
    draw_mistakes(tmp_path / "nine.png", packed(), predictions(rows, codes), codes, "t")
    names = [text for text in drawn["nine"].texts if text.get_text() == "a very long f…"]
    left = [name for name in names if name.get_position()[0] == 0]
    # Four of the nine have a tile of 2.33 inches, five take 0.7: the first three are nearest to half of 12.82.
    assert (len(names), len(left)) == (9, 3)


def test_pictures_are_the_same_bytes_and_whole(tmp_path):
    table = predictions()
    for folder in ("a", "b"):
        with matplotlib.rc_context({"font.size": 25} if folder == "b" else {}):
            draw_mistakes(tmp_path / folder / "mistakes.png", packed(), table, CLASSES, "t")
            draw_missed(tmp_path / folder / "missed.png", packed(), table, CLASSES, "t")
    for name in ("mistakes.png", "missed.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        with Image.open(tmp_path / "a" / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert all((edge == 255).all() for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])), name
        assert (pixels < 100).mean() > 0.02


def test_a_diagnosis_that_is_no_class(tmp_path):
    with pytest.raises(UserError, match="does not know: mel"):
        draw_mistakes(tmp_path / "m.png", packed(), predictions(), ["bkl", "nv"], "t")
