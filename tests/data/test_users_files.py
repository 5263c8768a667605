"""Nothing that a user keeps in, around or behind the pipeline's folders is ever lost, whatever command runs."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from helpers.datasets import DataProject, ham, save
from helpers.project import Project, clone

from exp_tools.data.acquire import managed_folder
from exp_tools.data.acquire.managed_folder import MARKER, refilled

TINY = {
    "data": {"sample_images": 40},
    "prepare": {"image_size": 32},
    "model": {"name": "timm", "timm": {"backbone": "test_resnet"}},
    "train": {"epochs": 1, "batch_size": 16},
    "evaluate": {"resamples": 100},
    "machine": {"threads": 1},
}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory) -> Project:
    """A project whose stage `download` has run."""
    project = clone(tmp_path_factory.mktemp("files") / "project", TINY)
    project.run("dvc", "repro", "-q", "download")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "downloaded")
    return project


@pytest.fixture
def project(downloaded, tmp_path) -> Project:
    return downloaded.copy(tmp_path / "project")


def stopped(project: Project, *command: str) -> str:
    """Run a command that must fail without a traceback of ours; what it said, in one line."""
    done = project.run(*command, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    return " ".join(said.split())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


DOWNLOAD = ("dvc", "repro", "download")
FORCED = ("dvc", "repro", "-f", "-s", "download")
EXPERIMENT = ("dvc", "exp", "run", "-S", "data.sample_images=44", "download")


def add_by_hand(project: Project) -> dict[Path, bytes]:
    """Put files into data/raw: beside what the stage made, among it, and in a folder of their own."""
    raw = project.folder / "data/raw"
    mine = {
        raw / "holiday.jpg": b"mine",
        raw / "HAM10000_images_part_1/notes.txt": b"also mine",
        raw / "new/a.csv": b"1",
    }
    for path, content in mine.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return mine


COMMANDS = (DOWNLOAD, FORCED, EXPERIMENT, (*EXPERIMENT[:3], "-f", *EXPERIMENT[3:]))


@pytest.mark.parametrize(
    "commands", [COMMANDS[1:3], pytest.param(COMMANDS, marks=pytest.mark.sweep)], ids=["two commands", "all commands"]
)
def test_files_added_by_hand_stay(project, commands):
    mine = add_by_hand(project)
    for command in commands:
        said = stopped(project, *command)
        assert "data/raw holds HAM10000_images_part_1/notes.txt and 2 more, which the pipeline did not make" in said
        assert "set data.dir to it" in said
        project.run("git", "checkout", "-q", "params.yaml")
    for command in (("dvc", "checkout"), ("dvc", "checkout", "--force"), ("dvc", "status")):
        project.run(*command, check=False)
        assert {path: path.read_bytes() for path in mine} == mine
    for path in mine:  # the remedy
        new = project.folder / "mine" / path.relative_to(project.folder / "data/raw")
        new.parent.mkdir(parents=True, exist_ok=True)
        path.rename(new)
    project.run(*EXPERIMENT)
    assert len(list((project.folder / "data/raw").rglob("*.jpg"))) == 44


@pytest.mark.sweep
def test_files_added_by_hand_stay_through_experiments_elsewhere(ran_project, tmp_path):
    """They run in folders of their own, with a data/raw of their own."""
    project = ran_project.copy(tmp_path / "project")
    mine = add_by_hand(project)
    project.run("dvc", "exp", "run", "-n", "apart", "--temp", "-S", "data.sample_images=44")
    project.run("dvc", "exp", "run", "-n", "queued", "--queue", "-S", "data.sample_images=48")
    project.run("dvc", "queue", "start")
    wait_for_the_queue(project)
    for command in (
        ("dvc", "exp", "apply", "apart"),
        ("dvc", "exp", "apply", "queued"),
        ("dvc", "checkout", "--force"),
    ):
        project.run(*command)
        assert {path: path.read_bytes() for path in mine} == mine


def wait_for_the_queue(project: Project) -> None:
    for _ in range(240):
        said = project.run("dvc", "queue", "status").stdout
        if "Queued" not in said and "Running" not in said:
            assert "Success" in said, said
            return
        time.sleep(0.5)
    raise AssertionError(said)


def test_a_file_that_was_changed_stays(project):
    table = project.folder / "data/raw/HAM10000_metadata.csv"
    fixed = table.read_text() + "\n"
    table.write_text(fixed)
    assert "HAM10000_metadata.csv, which was changed after the pipeline made it" in stopped(project, *FORCED)
    assert table.read_text() == fixed


@pytest.mark.parametrize(
    "place",
    [
        "data/raw/mine",
        "data/prepared/mine",
        pytest.param("data/external_raw/mine", marks=pytest.mark.sweep),
        pytest.param("data/external/mine", marks=pytest.mark.sweep),
    ],
)
def test_a_users_folder_inside_an_output_stays(project, place):
    mine = ham(project.folder / place)
    before = everything(mine)
    changes = ["-S", "data.source=ham10000", "-S", f"data.dir={place}"]
    said = stopped(project, "dvc", "exp", "run", *changes, "download")
    assert "overlap. Nothing was touched" in said
    project.run("git", "checkout", "-q", "params.yaml")
    change(project, "data", source="ham10000", dir=place)
    assert "overlap. Nothing was touched" in stopped(project, *DOWNLOAD)
    assert everything(mine) == before
    project.run("git", "checkout", "-q", "params.yaml")
    shutil.rmtree(mine)


def test_an_output_inside_the_users_folder_is_refused(project):
    mine = ham(project.folder / "data/mine")
    before = everything(mine)
    change(project, "data", source="ham10000", dir="data")
    said = stopped(project, *DOWNLOAD)
    assert "overlap" in said
    assert everything(mine) == before
    change(project, "data", dir="data/mine")  # the remedy: a folder of its own, beside the outputs
    project.run(*DOWNLOAD)
    assert everything(mine) == before


def change(project: Project, section: str, **values) -> None:
    path = project.folder / "params.yaml"
    content = yaml.safe_load(path.read_text())
    content[section] |= values
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.mark.parametrize(
    ("output", "commands"),
    [
        ("data/raw", (1, 3)),
        pytest.param("data/raw", range(4), marks=pytest.mark.sweep),
        pytest.param("data/external_raw", range(4), marks=pytest.mark.sweep),
    ],
    ids=["data/raw, two commands", "data/raw", "data/external_raw"],
)
def test_an_output_that_is_a_link_is_refused_with_the_way_out(project, tmp_path, output, commands):
    mine = ham(tmp_path / "originals")
    before = everything(mine)
    shutil.rmtree(project.folder / output, ignore_errors=True)
    (project.folder / output).symlink_to(mine)
    stage = "download" if output == "data/raw" else "external"
    every = (
        ("dvc", "repro", "-f", "-s", stage),
        ("dvc", "exp", "run", "-f", "-s", "-S", "data.sample_images=44", stage),
        ("dvc", "checkout"),
        ("dvc", "checkout", "--force"),
    )
    for command in [every[number] for number in commands]:
        done = project.run(*command, check=False)
        said = " ".join((done.stdout + done.stderr).split())
        if "checkout" not in command:
            assert done.returncode != 0
            if stage == "download":
                assert f"data/raw is a symbolic link to {mine}" in said, said
                assert "rm data/raw" in said
        assert everything(mine) == before
        assert (project.folder / output).is_symlink()
        project.run("git", "checkout", "-q", "params.yaml")
    (project.folder / output).unlink()  # the remedy
    change(project, "data", source="ham10000", dir=str(mine))
    project.run(*DOWNLOAD)
    assert len([path for path in (project.folder / "data/raw").rglob("*.jpg") if path.is_symlink()]) == 28
    assert everything(mine) == before


@pytest.mark.sweep
def test_an_output_from_before_the_marker_is_known_by_its_hash(project):
    raw = project.folder / "data/raw"
    (raw / MARKER).unlink()
    assert f"no {MARKER}, the list of what the pipeline made" in stopped(project, *FORCED)
    project.run("dvc", "commit", "-f", "download")  # dvc.lock as it was then
    project.run("git", "commit", "-qam", "before the marker")
    old = project.copy(project.folder.with_name("old"))
    project.run("git", "revert", "--no-edit", "HEAD")  # as if dvc.lock came from somebody who has the marker already
    for each in (old, project):
        each.run(*EXPERIMENT)
        assert len(list((each.folder / "data/raw").rglob("*.jpg"))) == 44
        assert (each.folder / "data/raw" / MARKER).is_file()
    (old.folder / "data/raw" / MARKER).unlink()
    (old.folder / "data/raw/mine.jpg").write_bytes(b"mine")
    stopped(old, *FORCED)
    assert (old.folder / "data/raw/mine.jpg").read_bytes() == b"mine"


# --- the stages alone


@pytest.fixture
def alone(tmp_path, monkeypatch) -> DataProject:
    return DataProject(
        tmp_path / "project", monkeypatch.chdir, data__source="ham10000", data__dir=ham(tmp_path / "originals")
    )


def test_a_run_that_fails_leaves_what_was_there(alone, tmp_path):
    alone.run("download")
    before = everything(alone.folder / "data")
    alone.change(data__dir=tmp_path / "nowhere")
    assert "there is no folder" in alone.fails("download")
    assert everything(alone.folder / "data") == before
    empty = tmp_path / "empty"
    empty.mkdir()
    alone.change(data__dir=empty)
    assert "there is no image" in alone.fails("download")
    assert everything(alone.folder / "data") == before


def test_a_run_that_was_killed_is_no_hindrance(alone, tmp_path, monkeypatch):
    alone.run("download")
    smaller = ham(tmp_path / "smaller", [f"L{n},I{n},nv,histo,50,male,back" for n in range(9)])
    alone.change(data__dir=smaller)
    replace, left = os.replace, [14]

    def killed(source, target):
        left[0] -= 1
        if left[0] == 6:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr("exp_tools.data.acquire.managed_folder.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        alone.run("download")
    monkeypatch.undo()
    monkeypatch.chdir(alone.folder)
    alone.run("download")
    assert sorted(path.stem for path in (alone.folder / "data/raw").rglob("*.jpg")) == [f"I{n}" for n in range(9)]
    assert [path.name for path in (alone.folder / "data").iterdir()] == ["raw"]


@pytest.mark.parametrize("call", ["write_json", "mkdir"])
def test_a_disk_that_is_full_at_the_end_leaves_what_was_there(alone, tmp_path, monkeypatch, call):
    alone.run("download")
    before = everything(alone.folder / "data")
    alone.change(data__source="folder", data__dir=save(tmp_path / "other/mel/x.png").parents[1])
    made = Path.mkdir

    def full(path, *given, **options):
        if call == "write_json" or (path.name, path.parent.name) == ("mel", "raw"):
            raise OSError(28, "No space left on device")
        return made(path, *given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(managed_folder if call == "write_json" else Path, call, full)
        assert "data/raw could not be filled: no space is left on the disk" in alone.fails("download")
    assert everything(alone.folder / "data") == before
    alone.run("download")
    assert {path.name for path in (alone.folder / "data/raw").rglob("*") if path.is_file()} == {"x.png", MARKER}


def test_a_folder_takes_the_place_of_a_file_and_a_file_that_of_a_folder(alone, tmp_path):
    for number, names in enumerate((("a/x.csv", "b.csv"), ("a", "b.csv/x.csv"))):
        with refilled(Path("data/raw"), "data.dir") as fresh:
            for name in names:
                (fresh / name).parent.mkdir(exist_ok=True)
                (fresh / name).write_text(str(number))
        assert sorted(everything(Path("data/raw"))) == sorted([*names, MARKER])


def test_what_systems_leave_behind_neither_stops_a_run_nor_goes(alone):
    alone.run("download")
    (alone.folder / "data/raw/.DS_Store").write_bytes(b"x")
    (alone.folder / "data/raw/HAM10000_images_part_1/._x.jpg").write_bytes(b"x")
    alone.run("download")
    assert (alone.folder / "data/raw/.DS_Store").is_file()
    assert (alone.folder / "data/raw/HAM10000_images_part_1/._x.jpg").is_file()


def test_the_marker_knows_neither_times_nor_folders(alone, tmp_path):
    alone.run("download")
    marker = alone.folder / "data/raw" / MARKER
    first = marker.read_bytes()
    listed = json.loads(first)
    assert listed["HAM10000_images_part_1/ISIC_0000000.jpg"] == "link to ISIC_0000000.jpg"
    assert set(listed) == set(everything(alone.folder / "data/raw")) - {MARKER}
    alone.change(data__dir=shutil.copytree(tmp_path / "originals", tmp_path / "a copy")).run("download")
    assert marker.read_bytes() == first


def test_files_beside_external_sets_stay(alone, tmp_path):
    save(tmp_path / "clinic/mel/a.png", 5)
    alone.change(data__external={"clinic": {"source": "folder", "dir": str(tmp_path / "clinic")}})
    alone.run("download", "prepare", "external")
    note = alone.folder / "data/external_raw/clinic/mel/note.txt"
    own = alone.folder / "data/external/own/a.csv"
    for path in (note, own):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    said = alone.fails("external")
    assert "data/external_raw holds clinic/mel/note.txt, which the pipeline did not make" in said
    assert note.read_text() == own.read_text() == "mine"
    note.unlink()
    alone.run("external")
    assert own.read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(alone):
    (alone.folder / "data").mkdir()
    (alone.folder / "data/raw").write_text("mine")
    assert "data/raw is a file" in alone.fails("download")
    assert (alone.folder / "data/raw").read_text() == "mine"
