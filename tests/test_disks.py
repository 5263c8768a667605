"""Disks that are full or read-only, and what killed runs leave: one sentence, and the state before."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.datasets import DataProject, picture, save
from helpers.models import write_model
from helpers.project import ROOT

from exp_tools import io
from exp_tools.cli import main as cli
from exp_tools.data.images import pack
from exp_tools.data.images.pack import pack_images
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.sources.tables import header_of, read_text_table
from exp_tools.errors import UserError, disk_fault, require_readable
from exp_tools.io import atomic_write, scratch_folder, write_csv, write_json, write_png
from exp_tools.models.model_file import read_facts
from exp_tools.params import load_params

GONE = 4_190_000
"""A process number above the largest that Linux gives by default, so of no process."""
HERE = io.MAKER.rpartition("-")[0]


@pytest.fixture
def small(tmp_path):
    """A disk of 2 MB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def noise(folder: Path, count: int) -> list[Path]:
    return [save(folder / f"{number}.png", number) for number in range(count)]


# --- full


def test_images_that_the_disk_has_no_room_for_are_one_sentence_and_no_crash(small, tmp_path):
    """A memory map would be written to until the kernel kills the process; here it is a subprocess, so that it may."""
    files = noise(tmp_path, 8)
    (small / "images.npy").write_bytes(b"before")
    script = f"""
from pathlib import Path
from exp_tools import io
from exp_tools.data.images import pack
from exp_tools.errors import run_main
pack.require_space = lambda *given: None  # as where something else fills the disk meanwhile
def main():
    pack.pack_images({[str(file) for file in files]!r}, Path({str(small / "images.npy")!r}),
                     pack.Preprocessing(image_size=512, resize="squash", hair_removal=False, colour_constancy=False,
                                        clahe=False))
run_main(main)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {small}/images.npy could not be written: no space is left on the disk. Make room there (`df -h` shows "
        "each disk), then repeat the command"
    )
    assert "Traceback" not in done.stderr
    assert [path.name for path in small.iterdir()] == ["images.npy"]
    assert (small / "images.npy").read_bytes() == b"before"


def save_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(4_000_000, np.uint8))


def save_network(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1_000_000)}, str(path))


def save_checkpoint(path: Path) -> None:
    import torch

    torch.save({"x": torch.zeros(1_000_000)}, path)


def write(target: Path, writer: Callable[[Path], object]) -> None:
    with atomic_write(target) as temporary:
        writer(temporary)


def failing(error: Exception) -> Callable[[Path], None]:
    def writer(path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    return writer


WRITERS = {
    "text": lambda path: path.write_text("x" * 4_000_000),
    "table": lambda path: pd.DataFrame({"x": np.arange(500_000)}).to_csv(path),
    "array": save_array,
    "weights": save_network,
    "picture": lambda path: picture(1, 3000, 3000).save(path, format="BMP"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_whatever_library_writes(small, writer):
    target = small / "result"
    target.write_bytes(b"before")
    with pytest.raises(UserError, match=r"result could not be written: no space is left on the disk\. Make room"):
        write(target, WRITERS[writer])
    assert [path.name for path in small.iterdir()] == ["result"]
    assert target.read_bytes() == b"before"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("4000000 requested and 0 written"),  # numpy.save
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
    ids=["Python", "NumPy", "PyTorch", "Rust"],
)
def test_each_way_of_saying_that_a_disk_is_full_is_understood(tmp_path, error):
    target = tmp_path / "result"
    target.write_bytes(b"before")
    with pytest.raises(UserError, match=r"result could not be written: no space is left on the disk"):
        write(target, failing(error))
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert target.read_bytes() == b"before"


def test_other_errors_and_those_of_other_files_stay_what_they_are(tmp_path):
    for error in (ValueError("a fault of ours"), PermissionError(errno.EACCES, "", "/another/file")):
        with pytest.raises(type(error)), atomic_write(tmp_path / "result"):
            raise error
    assert disk_fault(FileNotFoundError(errno.ENOENT, "", "x")) is None
    assert str(disk_fault(PermissionError(errno.EACCES, "", "x"))).startswith("x: no permission. `ls -ld`")


def test_room_is_taken_before_images_are_decoded(tmp_path, monkeypatch):
    files, target, taken = noise(tmp_path, 2), tmp_path / "images.npy", []
    settings = Preprocessing(image_size=32, resize="squash", hair_removal=False, colour_constancy=False, clahe=False)
    monkeypatch.setattr(pack.os, "posix_fallocate", lambda *given: taken.append(given[1:]), raising=False)
    pack_images(files, target, settings)
    assert taken == [(0, 2 * 32 * 32 * 3 + 128)]
    whole = target.read_bytes()

    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pack.os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(pack, "decode_with_notes", None)
    with pytest.raises(UserError, match=r"images\.npy could not be written: no space is left"):
        pack_images(files, target, settings)
    assert target.read_bytes() == whole
    monkeypatch.undo()

    def unable(*given):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(pack.os, "posix_fallocate", unable, raising=False)
    pack_images(files, target, settings)
    assert target.read_bytes() == whole
    monkeypatch.delattr(pack.os, "posix_fallocate")  # macOS
    pack_images(files, target, settings)
    assert target.read_bytes() == whole


def test_images_that_are_left_out_leave_no_gap_and_no_second_array(tmp_path, monkeypatch):
    files = noise(tmp_path, 40)
    for place in (0, 17, 39):
        files[place].write_bytes(b"broken")
    settings = Preprocessing(image_size=32, resize="squash", hair_removal=False, colour_constancy=False, clahe=False)
    pack_images(files, tmp_path / "some.npy", settings, policy={"not_an_image": "skip", "damaged_image": "skip"})
    kept = [file for place, file in enumerate(files) if place not in (0, 17, 39)]
    pack_images(kept, tmp_path / "kept.npy", settings)
    assert (tmp_path / "some.npy").read_bytes() == (tmp_path / "kept.npy").read_bytes()


def test_a_file_that_may_not_get_that_large(tmp_path):
    """As `ulimit -f` does it: in a subprocess, which has the limit for itself."""
    script = f"""
import resource, signal
from pathlib import Path
from exp_tools.errors import run_main
from exp_tools.io import write_json
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
run_main(lambda: write_json(Path({str(tmp_path / "m.json")!r}), list(range(1000))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "m.json could not be written: a file may not get that large here. Raise the limit" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- read-only


def read_only(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)


STAGES = ("download", "prepare", "split")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_read_only_disk_says_so_and_leaves_what_was_there(small, tmp_path, monkeypatch, stage):
    for number in range(24):
        save(tmp_path / "set" / ("mel", "nv")[number % 2] / f"I{number}.png", number)
    project = DataProject(small / "project", monkeypatch.chdir, data__source="folder", data__dir=tmp_path / "set")
    project.change(prepare__image_size=32).run(*STAGES)
    before = {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()}
    read_only(small)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=project.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: data")
    assert "the file system is read-only. Make it writable" in said
    assert {path: path.read_bytes() for path in project.folder.rglob("*") if path.is_file()} == before
    monkeypatch.chdir(tmp_path)


def test_a_command_whose_output_is_on_a_read_only_disk_says_so_before_it_works(small, tmp_path, monkeypatch, capsys):
    save(tmp_path / "images/a.png")
    write_model(tmp_path / "m.safetensors")
    read_only(small)
    monkeypatch.chdir(tmp_path)
    for command in (
        ["batch", "images", "--model", "m.safetensors", "--out"],
        ["predict", "images/a.png", "--model", "m.safetensors", "--explain"],
        ["export", "--model", "m.safetensors", "--images", "images", "--out"],
        ["evaluate", "--source", "folder", "--dir", "images", "--out"],
        ["duplicates", "images", "--out"],
        ["compare", "workspace", "--out"],
    ):
        assert cli.main([*command, str(small / "out.onnx")]) == 1
        said = capsys.readouterr().err
        assert "cannot be written to (Read-only file system)" in said
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "the file system is read-only"), (errno.EACCES, "no permission"), (errno.EDQUOT, "your share")],
)
def test_what_forbids_writing_is_said(tmp_path, monkeypatch, number, words):
    target = tmp_path / "metrics/split.json"
    write_json(target, {"a": 1})

    def forbidden(self, *given, **options):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", forbidden)
    with pytest.raises(UserError, match=rf"split\.json could not be written: {words}"):
        write_json(target, {"a": 2})
    monkeypatch.undo()
    assert target.read_text() == '{\n  "a": 1\n}\n'


def test_what_may_not_be_read_is_no_damaged_file(tmp_path, monkeypatch):
    write_model(tmp_path / "m.safetensors")
    (tmp_path / "p.yaml").write_text("task: diagnosis\n")
    (tmp_path / "t.csv").write_text("image_id,dx\n")
    opened = Path.open

    def forbidden(self, *given, **options):
        if self.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *given, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    for name, read in (
        ("m.safetensors", read_facts),
        ("p.yaml", load_params),
        ("t.csv", read_text_table),
        ("t.csv", header_of),
        ("x.zip", require_readable),
    ):
        with pytest.raises(UserError, match=rf"{name}: no permission\. `ls -ld` shows whose it is"):
            read(tmp_path / name)


# --- killed


def leave(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")


def test_temporaries_of_killed_runs_go_with_the_next_write_and_no_other_file(tmp_path):
    mine = (
        ".labels.csv.tmp",
        "labels.csv.123.tmp",
        f".other.csv.{HERE}-{GONE}.tmp",
        f".labels.csv.{HERE}-{GONE}.tmp.txt",
        f".labels.csv.{HERE}-x{GONE}.tmp",
        f".labels.csv.{io.MAKER}.tmp~",
        f".labels.csv.{HERE}-{os.getppid()}.tmp",  # of a process that is there
        f".labels.csv.another-{GONE}.tmp",  # of another machine, today
    )
    left = (f".labels.csv.{HERE}-{GONE}.tmp", f".labels.csv.{GONE}.tmp", f".labels.csv.another-{GONE + 1}.tmp")
    leave(tmp_path, *mine, *left)
    yesterday = time.time() - 2 * 86_400
    os.utime(tmp_path / left[2], (yesterday, yesterday))
    write_csv(tmp_path / "labels.csv", pd.DataFrame({"a": [1]}))
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "labels.csv"}


def test_a_temporary_whose_process_number_was_given_again_goes(tmp_path):
    name = f".x.{HERE}-{os.getppid()}.tmp"
    leave(tmp_path, name)
    os.utime(tmp_path / name, (1, 1))  # older than that process
    write_json(tmp_path / "x", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_folders_that_killed_runs_left_go_with_the_next_one_of_the_name(tmp_path):
    killed, other = (f".{name}.ab_1.{HERE}-{GONE}.tmp" for name in ("packing", "other"))
    leave(tmp_path, f"{killed}/clinic.npy", f"{other}/mine", "packing/mine")
    with scratch_folder(tmp_path, "packing") as first, scratch_folder(tmp_path, "packing") as second:
        assert first != second
        assert first.is_dir()
        assert second.is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {other, "packing"}


def test_a_killed_writer_leaves_nothing_behind_the_next_one(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from exp_tools.io import atomic_write, scratch_folder
with atomic_write(Path({str(tmp_path / "images.npy")!r})) as temporary, scratch_folder(Path({str(tmp_path)!r}), "raw"):
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    with scratch_folder(tmp_path, "raw"):
        write_json(tmp_path / "images.npy", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["images.npy"]


def test_space_is_asked_for_after_the_leftovers_are_gone(tmp_path, monkeypatch):
    leave(tmp_path, f".images.npy.{HERE}-{GONE}.tmp")
    asked = []
    monkeypatch.setattr(pack, "require_space", lambda *given: asked.append([path.name for path in tmp_path.iterdir()]))
    settings = Preprocessing(image_size=32, resize="squash", hair_removal=False, colour_constancy=False, clahe=False)
    pack_images([picture_file(tmp_path)], tmp_path / "images.npy", settings)
    assert asked == [["a.png"]]


def picture_file(folder: Path) -> Path:
    write_png(folder / "a.png", picture(1))
    return folder / "a.png"
