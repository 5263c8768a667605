"""`exp-tools duplicates` on a folder of anybody's images."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.data.duplicates.verdicts import read_verdicts
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
    assert Image.open(out / "pairs_001.png").size[0] > 800
    assert (out / "to_judge.csv").read_text().splitlines()[:2] == ["image_id,other_image_id,same,note", "I0,turned,,"]


def test_rows_that_were_judged_are_verdicts(folder, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["duplicates", str(folder), "--out", str(out), "--processes", "1"]) == 0
    judged = pd.read_csv(out / "to_judge.csv").head(1).assign(same="yes")
    judged.to_csv(tmp_path / "verdicts.csv", index=False)
    assert read_verdicts(tmp_path / "verdicts.csv")[["image_id", "same"]].to_numpy().tolist() == [["I0", "yes"]]


def test_a_damaged_image_is_listed_and_the_others_are_searched(folder, tmp_path, capsys):
    whole = (folder / "I1.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    assert cli.main(["duplicates", str(folder), "--out", str(tmp_path / "out"), "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "1 pairs among 6 images" in said
    assert "2 images cannot be decoded and have no pairs" in said
    assert f"{folder / 'broken.jpg'}: the image is damaged or cut off" in said
    assert f"{folder / 'empty.png'}: the file is empty" in said
    for name in ("I0.jpg", "I1.jpg", "deep/turned.png"):
        (folder / name).write_bytes(b"")
    assert cli.main(["duplicates", str(folder), "--out", str(tmp_path / "none"), "--processes", "1"]) == 1
    assert "fewer than two images" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_picture_stored_turned_is_searched_upright(folder, tmp_path):
    """The same pixels, put upright by EXIF: only what is decoded by one rule is equal."""
    image = Image.open(folder / "I2.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "upright.png", exif=exif)
    image.save(folder / "same.png")
    out = tmp_path / "out"
    assert cli.main(["duplicates", str(folder), "--out", str(out), "--processes", "1"]) == 0
    pairs = pd.read_csv(out / "pairs.csv").set_index(["image_id_1", "image_id_2"])
    assert pairs.loc[("same", "upright"), "identical"]


@pytest.fixture
def weights(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors, timm = pytest.importorskip("safetensors.torch"), pytest.importorskip("timm")
    torch.manual_seed(0)
    path = tmp_path / "test_resnet.safetensors"
    safetensors.save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return path


def test_pairs_with_similar_embeddings_are_listed(folder, weights, tmp_path, capsys):
    whole = (folder / "I1.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    arguments = ["duplicates", str(folder), "--out", str(out), "--processes", "1", "--embed", str(weights)]
    assert cli.main(arguments) == 0
    pairs = pd.read_csv(out / "pairs.csv").set_index(["image_id_1", "image_id_2"])
    assert len(pairs) == 6, "every pair of the four images is near enough, none is of the damaged one"
    assert pairs["similarity"].notna().all()
    other = weights.rename(tmp_path / "other.safetensors")
    assert cli.main([*arguments[:-1], str(other), "--backbone", "test_resnet"]) == 0
    capsys.readouterr()
    assert cli.main([*arguments[:-1], str(other)]) == 1
    assert f"Name the network of {other} with --backbone" in capsys.readouterr().err
    assert cli.main([*arguments[:-2], "--backbone", "test_resnet"]) == 1
    assert "add --embed WEIGHTS" in capsys.readouterr().err


def test_a_folder_without_a_pair_to_look_at_is_refused(tmp_path, capsys):
    assert cli.main(["duplicates", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert "holds 0 images" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_in_which_somebody_has_written_is_never_made_anew(folder, tmp_path, capsys):
    command = ["duplicates", str(folder), "--out", str(tmp_path / "out"), "--processes", "1"]
    assert cli.main(command) == 0
    assert cli.main(command) == 0
    judged = tmp_path / "out/to_judge.csv"
    judged.write_text("image_id,other_image_id,same,note\nI0,turned,yes,\n")
    assert cli.main(command) == 1
    assert "to_judge.csv exists" in capsys.readouterr().err
    assert "I0,turned,yes" in judged.read_text()
