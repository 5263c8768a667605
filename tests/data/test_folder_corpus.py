"""Folders and file systems as people have them: what each leads to, and that nothing in the user's folder changes.

One case of each kind is in the normal run, the rest in the sweep.
"""

import os
import re
import shutil
import socket
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest
from helpers.datasets import DataProject, save, write_table

from exp_tools.data.acquire import access


class Case(NamedTuple):
    """A folder: `make` changes the one with six images in two classes, or returns what `data.dir` is to say instead.

    `answer` is the number of images that are packed, or the message (a regular expression).
    """

    kind: str
    name: str
    make: Callable[[Path], str | Path | None]
    answer: int | str


def six(folder: Path) -> Path:
    for number in range(6):
        save(folder / ("mel", "nv")[number % 2] / f"I{number}.png", number)
    return folder


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def only_hidden(folder: Path) -> None:
    emptied(folder)
    save(folder / ".mel/a.png")
    save(folder / "mel/._a.png")
    (folder / ".DS_Store").write_bytes(b"x")


def only_folders(folder: Path) -> None:
    emptied(folder)
    (folder / "mel/deep/deeper").mkdir(parents=True)


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "mel/pipe.png")


def bound_socket(folder: Path) -> None:
    here = os.getcwd()
    os.chdir(folder / "mel")  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket.png")
    os.chdir(here)


def added(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for number, name in enumerate(names, 6):
            save(folder / name, number)

    return make


def linked(name: str, target: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder.parent / "outside/nv").mkdir(parents=True, exist_ok=True)
        save(folder.parent / "outside/nv/O.png", 9)
        (folder / name).symlink_to(target.format(folder=folder, outside=folder.parent / "outside"))

    return make


def zipped(folder: Path) -> None:
    with ZipFile(folder.parent / "set.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    emptied(folder)
    (folder.parent / "set.zip").rename(folder / "set.zip")


def as_zip(folder: Path) -> Path:
    zipped(folder)
    return folder / "set.zip"


def moved(place: str, written: str | None = None) -> Callable[[Path], str]:
    """The images at another place, which `data.dir` names as `written`; both relative to the project."""

    def make(folder: Path) -> str:
        target = Path(os.path.expanduser(place))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, target)
        return place if written is None else written

    return make


def behind_a_link(folder: Path) -> str:
    Path("way").symlink_to(folder.parent)
    return f"way/{folder.name}"


def own_folder_behind_a_link(folder: Path) -> str:
    six(Path("data/raw/mine"))
    Path("way").symlink_to("data")
    return "way/raw/mine"


def on_another_disk(folder: Path) -> Path:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK) or shared.stat().st_dev == folder.stat().st_dev:
        pytest.skip("no other file system here")
    target = shared / f"exp-tools-test-{os.getpid()}"
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(folder, target))


def hard_links(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        (folder.parent / f"twin-{path.name}").hardlink_to(path)


def read_only(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)


def closed(mode: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "mel").chmod(mode)
        if os.access(folder / "mel", os.R_OK | os.X_OK):
            pytest.skip("root may read everything")

    return make


def long_name(bytes_: int) -> str:
    return "nv/" + "é" * ((bytes_ - 5) // 2) + "x.png"


OVERLAP = "overlap. Nothing was touched. Move your files"
NO_IMAGE = r"there is no image \("
CASES = [
    Case("content", "an empty folder", emptied, NO_IMAGE),
    Case("content", "a folder of empty folders", only_folders, NO_IMAGE),
    Case("content", "only hidden files", only_hidden, NO_IMAGE),
    Case("content", "an empty class folder", lambda folder: (folder / "bcc").mkdir(), 6),
    Case("content", "nested class folders", added("clinic/2024/mel/N.png"), 7),
    Case("content", "TRAIN and Test above the classes", added("TRAIN/mel/T.png", "Test/nv/U.png"), 8),
    Case("content", "an image beside the class folders", added("T.png"), r"T\.png is in no class folder"),
    Case("content", "an image in train/ itself", added("train/T.png"), r"T\.png is in no class folder"),
    Case("content", "one name in two classes", added("mel/S.png", "nv/S.png"), 8),
    Case("content", "Mel beside mel", added("Mel/S.png"), 7),
    Case("content", "folders that notebooks and disks leave", added(".ipynb_checkpoints/C.png", "@eaDir/D.png"), 6),
    Case("links", "a dead link", linked("mel/L.png", "nowhere.png"), "is a link to nowhere.png, which is not there"),
    Case("links", "a link to itself", linked("mel/L.png", "L.png"), "is a link to L.png, which is not there"),
    Case("links", "a dead link that is no image", linked("note", "nowhere"), 6),
    Case("links", "a folder in itself", linked("mel/loop", "{folder}"), 6),
    Case("links", "a file outside", linked("mel/L.png", "{outside}/nv/O.png"), 7),
    Case("links", "a folder outside", linked("more", "{outside}"), 7),
    Case("links", "hard links", hard_links, 6),
    Case("special", "a pipe", fifo, 6),
    Case("special", "a socket", bound_socket, 6),
    Case("special", "a device", linked("mel/null.png", "/dev/null"), 6),
    Case("names", "a line break", added("mel/two\nlines.png"), r"cannot be an image id"),
    Case("names", "a tab", added("mel/a\ttab.png"), r"cannot be an image id"),
    Case("names", "emoji, quotes, spaces", added("mel/\U0001f600.png", 'mel/"it\'s".png', "nv/a  b.png"), 9),
    Case("names", "a space at the end", added("mel/end .png"), r"'end ' should read 'end'"),
    Case("names", "a leading dash", added("mel/-rf.png", "nv/--help.png"), 8),
    Case("names", "255 bytes", added(long_name(255)), 7),
    Case("names", "names that differ in case", added("mel/A.png", "mel/a.png"), 8),
    Case("names", "one name in NFC and NFD", added("mel/\u00e9.png", "mel/e\u0301.png"), 8),
    Case("access", "a folder that may only be read", read_only, 6),
    Case("access", "a folder that may not be listed", closed(0o300), "mel: no permission"),
    Case("access", "a folder that may not be entered", closed(0o600), "mel: no permission"),
    Case("path", "nothing there", lambda folder: "nowhere", "there is no folder"),
    Case("path", "a file", lambda folder: folder / "mel/I0.png", r"is a file; name the folder that it lies in"),
    Case("path", "a zip", as_zip, r"set\.zip is a file; name the folder that it lies in \(archives are unpacked\)"),
    Case("path", "the folder with a zip", zipped, 6),
    Case("path", "spaces and quotes", moved("my 'own' \"set\" "), 6),
    Case("path", "relative, with ..", moved("../beside/set", "x/../../beside/./set"), 6),
    Case("path", "the home folder", moved("~/set"), 6),
    Case("path", "slashes at the end", moved("mine/set", "mine//set//"), 6),
    Case("path", "behind a link", behind_a_link, 6),
    Case("path", "another file system", on_another_disk, 6),
    Case("own", "the project", lambda folder: ".", OVERLAP),
    Case("own", "data", lambda folder: "data", OVERLAP),
    Case("own", "data, with a slash and dots", lambda folder: "./plots/../data/", OVERLAP),
    Case("own", "plots", lambda folder: six(Path("plots")).name, OVERLAP),
    Case("own", "metrics", lambda folder: six(Path("metrics")).name, OVERLAP),
    Case("own", "in plots/figures", moved("plots/figures/set"), OVERLAP),
    Case("own", "in metrics/train", moved("metrics/train/set"), OVERLAP),
    Case("own", "in data/raw", moved("data/raw/set"), OVERLAP),
    Case("own", "in data/raw, by a link", own_folder_behind_a_link, OVERLAP),
    Case("own", "models", lambda folder: six(Path("models")).name, 6),
    Case("own", "in downloads", moved("downloads/set"), 6),
    Case("own", "in runs", moved("runs/set"), 6),
    Case("own", "DATA/RAW, which is another folder here", moved("DATA/RAW"), 6),
]


def marked() -> list:
    seen: set[str] = set()
    params = []
    for case in CASES:
        params.append(
            pytest.param(case, id=f"{case.kind}: {case.name}", marks=[pytest.mark.sweep] * (case.kind in seen))
        )
        seen.add(case.kind)
    return params


def everything(folder: Path) -> dict[str, tuple]:
    """Kind, permissions, target or bytes of all there is."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not os.access(path.parent, os.X_OK):
            continue
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_nlink, status.st_mtime_ns, content)
    return found


@pytest.fixture
def project(tmp_path, monkeypatch) -> DataProject:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return DataProject(tmp_path / "project", monkeypatch.chdir, data__source="folder")


@pytest.mark.parametrize("case", marked())
def test_each_folder_has_its_answer_and_stays_as_it_is(case, project, tmp_path):
    folder = six(tmp_path / "set")
    named = case.make(folder) or folder
    project.change(data__dir=str(named))
    place = Path(os.path.realpath(os.path.expanduser(named)))
    kept = [tmp_path / "set", *([place] if place.is_dir() and case.answer != OVERLAP else [])]
    before = [everything(each) for each in kept]
    if isinstance(case.answer, int):
        project.run("download", "prepare")
        assert len(project.images()) == len(project.labels()) == case.answer
    else:
        said = project.fails("download", "prepare")
        assert re.search(case.answer, said), said
    assert [everything(each) for each in kept] == before
    if "exp-tools-test" in str(named):
        shutil.rmtree(named)


def test_the_words_above_class_folders_are_read_in_any_case(project, tmp_path):
    folder = six(tmp_path / "set")
    added("TRAIN/mel/T.png", "Test/nv/U.png", "Validation/nv/V.png")(folder)
    project.change(data__dir=folder).run("download", "prepare")
    split = project.labels().set_index("image_id")["split"]
    assert (split["T"], split["U"], split["V"], split["I0"]) == ("train", "test", "val", "")


def test_names_in_two_forms_of_unicode_are_two_images(project, tmp_path):
    """A name is what the file system says it is: two files are never taken for one."""
    folder = six(tmp_path / "set")
    added("mel/\u00e9.png", "mel/e\u0301.png")(folder)
    project.change(data__dir=folder).run("download", "prepare")
    ids = [image_id for image_id in project.labels()["image_id"] if not image_id.startswith("I")]
    assert len(ids) == len(set(ids)) == 2
    assert {unicodedata.normalize("NFC", image_id) for image_id in ids} == {"\u00e9"}


@pytest.mark.parametrize("closed_place", ["mel", "labels.csv", "set.zip"])
def test_what_may_not_be_read_is_named_and_never_called_damaged(project, tmp_path, monkeypatch, closed_place):
    """As where the system forbids it, which it does to everybody but root."""
    folder = six(tmp_path / "set")
    write_table(folder / "labels.csv", ["I0,mel"], "image_id,dx")
    (folder / "set.zip").write_bytes(b"PK")
    monkeypatch.setattr(access.os, "access", lambda path, mode: Path(path).name != closed_place)
    said = project.change(data__dir=folder).fails("download")
    assert said.startswith(f"{folder / closed_place}: no permission. `ls -ld` shows whose it is")
    assert "damaged" not in said
    assert "whole" not in said


def test_second_folders_external_sets_and_tables_in_own_folders_are_refused_too(project, tmp_path):
    folder = six(tmp_path / "set")
    write_table(Path("plots/figures/t.csv"), ["I0,mel"], "image_id,dx")
    for changes, key in (
        ({"data__second_dir": "data/prepared"}, "data.second_dir"),
        ({"data__second_dir": None, "data__test_table": "plots/figures/t.csv"}, "data.test_table"),
    ):
        said = project.change(data__dir=folder, **changes).fails("download")
        assert said.startswith(f"{key} ")
        assert OVERLAP in said
    assert Path("plots/figures/t.csv").is_file()


def test_an_own_folder_is_known_by_what_it_is_not_by_its_name(tmp_path, monkeypatch):
    """As on a disk that takes DATA for data, or under a second mount: the same folder by another name."""
    own = tmp_path / "data/raw"
    own.mkdir(parents=True)
    other = tmp_path / "DATA/RAW/mine"
    other.mkdir(parents=True)
    assert not access.overlap(other, own)
    samefile = Path.samefile
    monkeypatch.setattr(Path, "samefile", lambda self, to: samefile(self, to) or str(self).lower() == str(to).lower())
    assert access.overlap(other, own)
