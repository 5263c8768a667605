"""No command writes over a file of the user's: whatever --out names, 0 bytes of it are lost."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.datasets import picture, save
from helpers.models import write_model
from helpers.project import ROOT
from PIL import Image

from exp_tools.cli import main as cli
from exp_tools.cli.outputs import holds, is_drawn_by_us, is_report, is_table, may_write, starts_with
from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import ID_COLUMNS
from exp_tools.io import write_csv, write_png
from exp_tools.project import OUTPUT_FILES, OUTPUT_FOLDERS

COMMANDS = {
    "predict": (["predict", "images/a.png", "--model", "m.safetensors", "--explain"], "{}"),
    "batch": (["batch", "images", "--model", "m.safetensors", "--out"], "{}"),
    "export": (["export", "--model", "m.safetensors", "--images", "images", "--out"], "{}"),
    "duplicates": (["duplicates", "images", "--processes", "1", "--out"], "{}/pairs.csv"),
    "duplicates' sheet": (["duplicates", "images", "--processes", "1", "--out"], "{}/pairs_001.png"),
    "duplicates' list": (["duplicates", "images", "--processes", "1", "--out"], "{}/to_judge.csv"),
    "evaluate": (["evaluate", "--source", "folder", "--dir", "images", "--out"], "{}/predictions.csv"),
    "evaluate's report": (["evaluate", "--source", "folder", "--dir", "images", "--out"], "{}/report.json"),
    "evaluate's problems": (["evaluate", "--source", "folder", "--dir", "images", "--out"], "{}/problems.csv"),
    "labels": (["labels", "folds.csv", "--out"], "{}/ranking.csv"),
    "labels' sheet": (["labels", "folds.csv", "--out"], "{}/labels_001.png"),
    "labels' list": (["labels", "folds.csv", "--out"], "{}/to_judge.csv"),
    "compare": (["compare", "workspace", "--out"], "{}.md"),
    "compare's table": (["compare", "workspace", "--out"], "{}.csv"),
    "compare's figure": (["compare", "workspace", "--out"], "{}.png"),
}
"""Of each command its arguments up to the output, and the file that it then writes."""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two images and a model, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("ab"):
        save(tmp_path / f"images/{name}.png", number)
    write_model(tmp_path / "m.safetensors")
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(arguments: list[str], capsys) -> str:
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["file", "link", "folder", "below a file"])
def test_what_is_the_users_stays(folder, command, kind, capsys):
    arguments, written = COMMANDS[command]
    out = Path(written.format("my own/x.onnx" if command == "export" else "my own/x"))
    out.parent.mkdir(parents=True)
    expected = {"file": "exists, and this command did not write it", "link": "is a symbolic link to"}
    if kind == "file":
        out.write_text("image_id,dx\nmine,nv\n")
    elif kind == "link":
        (folder / "elsewhere").write_text("mine")
        out.symlink_to(folder / "elsewhere")
    elif kind == "folder":
        out.mkdir()
        (out / "note").write_text("mine")
    else:
        out.parent.rmdir()
        out.parent.write_text("mine")
    before = everything(folder)
    said = refused([*arguments, "my own/x.onnx" if command == "export" else "my own/x"], capsys)
    assert expected.get(kind, "is a folder" if kind == "folder" else "is not a folder") in said
    assert everything(folder) == before
    if kind == "file":  # the remedy
        move = said[said.index("(mv ") + 4 : said.rindex(")")]
        assert os.system(f"mv {move}") == 0
        may_write(out, lambda path: False)


def test_an_input_is_no_output_by_any_name(folder, capsys):
    (folder / "hard.png").hardlink_to(folder / "images/a.png")
    (folder / "table.csv").write_text("image_id,split,predicted,abstain,melanoma,file\na,batch,nv,,,images/a.png\n")
    before = everything(folder)
    for out in ("images/a.png", "hard.png", "images/../images/a.png"):
        said = refused(["predict", "images/a.png", "--model", "m.safetensors", "--explain", out], capsys)
        assert f"{Path(out)} is what the command reads" in said
    said = refused(["batch", "table.csv", "--model", "m.safetensors", "--out", "table.csv"], capsys)
    assert "table.csv is what the command reads" in said
    assert everything(folder) == before


def test_a_device_is_no_output():
    with pytest.raises(UserError, match=r"/dev/null is a device, not a file"):
        may_write(Path("/dev/null"), lambda path: True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("out", ["/proc/x.csv", "/proc/nowhere/x.csv"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line_before_any_work(out, capsys):
    said = refused(["batch", "images", "--out", out], capsys)
    assert re.fullmatch(r"error: /proc/\S+: /proc cannot be written to \(.+\)\. Nothing .+\n", said)


def test_outputs_of_the_pipeline_are_not_written_by_commands(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for name in ("data/predictions.csv", "data/raw/x.csv", "plots/figures/deep/x.png", "MODEL_CARD.md"):
        with pytest.raises(UserError, match="belongs to the pipeline"):
            may_write(tmp_path / name, lambda path: True)
    may_write(tmp_path / "data/mine.csv", lambda path: True)
    may_write(tmp_path / "models/model.onnx", lambda path: True)


def test_all_outputs_of_the_pipeline_are_known():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outs = [entry if isinstance(entry, str) else next(iter(entry)) for stage in stages for entry in stage["outs"]]
    for out in map(Path, outs):
        assert out in OUTPUT_FILES or any(out.is_relative_to(folder) for folder in OUTPUT_FOLDERS), out
    for known in (*OUTPUT_FILES, *OUTPUT_FOLDERS):
        assert any(Path(out).is_relative_to(known) for out in outs), known


def test_a_command_replaces_what_it_wrote_before_and_nothing_that_was_changed_into_another_thing(folder, capsys):
    predict = ["predict", "images/a.png", "--model", "m.safetensors", "--explain", "out/map.png"]
    batch = ["batch", "images", "--model", "m.safetensors", "--out", "out/p.csv"]
    for command, out in ((predict, "out/map.png"), (batch, "out/p.csv")):
        assert cli.main(command) == 0
        first = (folder / out).read_bytes()
        assert cli.main(command) == 0
        assert (folder / out).read_bytes() == first
    capsys.readouterr()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "out/map.png")
    (folder / "out/p.problems.csv").write_text("my notes on the problems\n")
    before = everything(folder)
    assert "out/map.png exists" in refused(predict, capsys)
    assert "out/p.problems.csv exists" in refused(batch, capsys)
    assert everything(folder) == before


def test_a_prediction_table_without_its_ensemble_is_the_users(folder, capsys):
    (folder / "x.csv").write_text(",".join([*ID_COLUMNS, "p_nv", "logit_nv"]) + "\n")
    before = everything(folder)
    assert "x.csv exists, and this" in refused(["ensemble", "a", "b", "--out", "x.safetensors"], capsys)
    assert everything(folder) == before


def test_own_outputs_are_told_by_content(tmp_path):
    write_png(tmp_path / "ours.png", picture(1))
    save(tmp_path / "theirs.png")
    (tmp_path / "t.csv").write_text("a,b,c\r\n1,2,3\r\n")
    write_csv(tmp_path / "cr.csv", pd.DataFrame({"a": ["x\ry"], "c": [1]}))  # its header is quoted
    (tmp_path / "r.json").write_text('{"left_out": {}, "removed": null, "n": 1}')
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00exp_tools\x00")
    found = {
        name: [
            is_drawn_by_us(tmp_path / name),
            is_table("a", "c")(tmp_path / name),
            is_report("left_out", "removed")(tmp_path / name),
            starts_with("a,b,c")(tmp_path / name),
            holds("exp_tools")(tmp_path / name),
        ]
        for name in ("ours.png", "theirs.png", "t.csv", "cr.csv", "r.json", "binary")
    }
    assert found == {
        "ours.png": [True, False, False, False, False],
        "theirs.png": [False] * 5,
        "t.csv": [False, True, False, True, False],
        "cr.csv": [False, True, False, False, False],
        "r.json": [False, False, True, False, False],
        "binary": [False, False, False, False, True],
    }
