"""`exp-tools duplicates` on a folder of anybody's images."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.data.synthetic.scene import draw_lesion


@pytest.fixture
def folder(tmp_path):
    """Three drawn lesions, the first of them again, turned."""
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    for number in range(3):
        image, _ = draw_lesion("nv", lesion_seed=(9, number), view_seed=(9, number))
        Image.fromarray(image).save(pictures / f"I{number}.jpg", quality=95)
        if number == 0:
            Image.fromarray(np.rot90(image)).save(pictures / "deep" / "turned.png")
    return pictures


def test_the_turned_view_is_found_and_what_is_known_is_said(folder, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("image_id,lesion_id,dx,age\nI0,L0,nv,50\nturned,L7,mel,55\nI1,L1,nv,\n")
    out = tmp_path / "out"
    arguments = ["duplicates", str(folder), "--table", str(tmp_path / "t.csv"), "--out", str(out), "--processes", "1"]
    assert cli.main(arguments) == 0
    assert "1 pairs among 4 images, 1 of them not known to be of one lesion" in capsys.readouterr().out
    pairs = pd.read_csv(out / "pairs.csv")
    pair = pairs[pairs["accepted"]].iloc[0]
    assert {pair["image_id_1"], pair["image_id_2"]} == {"I0", "turned"}
    assert (pair["same_lesion"], pair["same_dx"], pair["age_difference"]) == (False, False, 5)
    assert Image.open(out / "pairs.png").size[0] > 800


def test_a_folder_without_a_pair_to_look_at_is_refused(tmp_path, capsys):
    assert cli.main(["duplicates", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds 0 images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
