"""An archive becomes a folder, whole and once; one that is damaged, too large or malicious leaves no trace."""

import errno
import gzip
import io
import json
import os
import random
import shutil
import stat
import tarfile
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from exp_tools.data.acquire import unpack as unpack_module
from exp_tools.data.acquire.unpack import unpack
from exp_tools.errors import UserError

BOUNDS = {"max_bytes": 10**9, "max_files": 100}
FILES = {"part/a.jpg": random.Random(1).randbytes(70_000), "part/deep/b.jpg": b"b" * 5, "table.csv": b"x,y\n"}


def make_zip(path: Path, files: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


MAKERS = {"set.zip": make_zip, "set.tar.gz": make_tar}


@pytest.fixture(params=MAKERS)
def make(request, tmp_path):
    """Makes an archive of given files, once as zip and once as tar.gz."""
    return lambda files=FILES: MAKERS[request.param](tmp_path / request.param, files)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "out" / "set"


def refuses(archive: Path, target: Path, message: str, **bounds: int) -> None:
    """The archive is refused with a message, and nothing of it is anywhere."""
    around = sorted(path for path in target.parents[1].rglob("*") if "out" not in path.parts)
    with pytest.raises(UserError, match=message) as error:
        unpack(archive, target, **(BOUNDS | bounds))
    assert str(archive) in str(error.value)
    assert [path for path in target.parent.rglob("*") if not path.name.endswith(".lock")] == []
    assert sorted(path for path in target.parents[1].rglob("*") if "out" not in path.parts) == around


# --- the straight way, and what is remembered


def test_an_archive_becomes_a_folder(make, target):
    files = unpack(make(), target, **BOUNDS)
    assert files == [target / name for name in sorted(FILES)]
    assert {str(path.relative_to(target)): path.read_bytes() for path in files} == FILES


def test_what_macos_adds_is_left_out(make, target):
    litter = {"__MACOSX/part/._a.jpg": b"1", "part/._a.jpg": b"2", ".DS_Store": b"3", "part/.DS_Store": b"4"}
    files = unpack(make(FILES | litter), target, **BOUNDS)
    assert files == [target / name for name in sorted(FILES)]


def test_a_second_call_reads_nothing_of_the_archive(make, target, monkeypatch):
    archive = make()
    first = unpack(archive, target, **BOUNDS)
    monkeypatch.setattr(unpack_module, "file_sha256", None)
    monkeypatch.setattr(unpack_module, "_unpack", None)
    assert unpack(archive, target, **BOUNDS) == first


def test_a_copied_archive_is_known_by_its_checksum_and_hashed_once(make, target, monkeypatch):
    archive = make()
    first = unpack(archive, target, **BOUNDS)
    os.utime(archive, ns=(1, 1))
    monkeypatch.setattr(unpack_module, "_unpack", None)
    assert unpack(archive, target, **BOUNDS) == first
    monkeypatch.setattr(unpack_module, "file_sha256", None)
    assert unpack(archive, target, **BOUNDS) == first


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"short")], ids=["gone", "cut"])
def test_a_harmed_folder_is_unpacked_again(make, target, harm):
    archive = make()
    unpack(archive, target, **BOUNDS)
    harm(target / "part" / "a.jpg")
    unpack(archive, target, **BOUNDS)
    assert (target / "part" / "a.jpg").read_bytes() == FILES["part/a.jpg"]


def test_another_archive_replaces_the_folder(make, target):
    unpack(make(), target, **BOUNDS)
    assert unpack(make({"other.jpg": b"new"}), target, **BOUNDS) == [target / "other.jpg"]
    assert sorted(path.name for path in target.iterdir()) == [unpack_module.MARKER, "other.jpg"]


def test_another_archive_of_the_same_size_is_noticed(tmp_path, target):
    for content in (b"one", b"two"):
        archive = make_zip(tmp_path / "set.zip", {"a.jpg": content})
        os.utime(archive, ns=(content[0], content[0]))
        unpack(archive, target, **BOUNDS)
        assert (target / "a.jpg").read_bytes() == content


def test_a_bad_archive_leaves_the_folder_of_the_good_one(make, target):
    unpack(make(), target, **BOUNDS)
    with pytest.raises(UserError):
        unpack(make({"../evil": b""}), target, **BOUNDS)
    assert (target / "table.csv").read_bytes() == b"x,y\n"


def test_files_of_other_origin_are_not_touched(make, target):
    target.mkdir(parents=True)
    (target / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match="not unpacked by this program"):
        unpack(make(), target, **BOUNDS)
    assert [path.name for path in target.iterdir()] == ["mine.jpg"]


def test_a_file_that_somebody_added_stays_when_the_archive_is_another_one(make, target):
    unpack(make(), target, **BOUNDS)
    (target / "notes.txt").write_bytes(b"mine")
    archive = make({"other.jpg": b"other"})
    with pytest.raises(UserError, match=r"holds notes\.txt, which came from no archive"):
        unpack(archive, target, **BOUNDS)
    assert (target / "notes.txt").read_bytes() == b"mine"
    (target / "notes.txt").unlink()
    assert [path.name for path in unpack(archive, target, **BOUNDS)] == ["other.jpg"]


def test_what_a_killed_process_left_is_cleared_away(make, target):
    scratch = target.with_name(".unpacking.x1_y2.999999999.tmp") / "new"
    scratch.mkdir(parents=True)
    (scratch / "half.jpg").write_bytes(b"half")
    unpack(make(), target, **BOUNDS)
    assert not (target / "half.jpg").exists()
    assert not scratch.parent.exists()


def test_threads_that_want_the_same_folder_unpack_it_once(make, target, monkeypatch):
    archive, real, calls, found = make(), unpack_module._unpack, [], []
    monkeypatch.setattr(unpack_module, "_unpack", lambda *args: (calls.append(1), real(*args))[1])
    threads = [threading.Thread(target=lambda: found.append(unpack(archive, target, **BOUNDS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[target / name for name in sorted(FILES)]] * 4
    assert calls == [1]


# --- names that leave the folder, and things that are not files


@pytest.mark.parametrize(
    "name",
    [
        "../evil.jpg",
        "part/../../evil.jpg",
        "/tmp/evil.jpg",
        "C:/evil.jpg",
        "C:evil.jpg",
        "part/d:evil.jpg",
        "..\\evil.jpg",
        "\\\\server\\share\\evil.jpg",
        "part/.. /evil.jpg",  # Windows takes the blank away
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(make, target, name):
    refuses(make({"good.jpg": b"1", name: b"2"}), target, "leads out of the folder")


def test_a_folder_entry_that_leaves_the_folder_is_refused(make, target):
    refuses(make({"../evil/": b""}), target, "leads out of the folder")


@pytest.mark.parametrize("name", ["./part/a.jpg", "part//a.jpg", "part\\a.jpg"])
def test_an_odd_but_harmless_name_is_put_right(make, target, name):
    assert unpack(make({name: b"1"}), target, **BOUNDS) == [target / "part" / "a.jpg"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, target, kind):
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("part")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refuses(tmp_path / "set.tar.gz", target, "'part' in it is a link or a device")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, target, kind):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        member = zipfile.ZipInfo("part")
        member.external_attr = (kind | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    refuses(tmp_path / "set.zip", target, "'part' in it is a link or a device")


def test_the_same_name_twice_is_refused(tmp_path, target):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.jpg", b"2")
    refuses(tmp_path / "set.zip", target, "holds 'a.jpg' twice")


def test_a_file_where_a_folder_must_be_is_refused(make, target):
    refuses(make({"part": b"1", "part/a.jpg": b"2"}), target, "Not a directory|File exists")


# --- bombs


def test_more_bytes_than_expected_are_refused(make, target):
    archive = make()
    unpacked = sum(map(len, FILES.values()))
    refuses(archive, target, "unpacks to more than 70.0kB", max_bytes=unpacked - 1)
    assert len(unpack(archive, target, max_bytes=unpacked, max_files=3)) == 3


def test_a_zip_that_says_it_is_too_large_is_refused_unread(tmp_path, target, monkeypatch):
    archive = make_zip(tmp_path / "set.zip", FILES)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    refuses(archive, target, "unpacks to more than", max_bytes=70_000)


def test_more_files_than_expected_are_refused(make, target):
    refuses(make(), target, "more than 2 files", max_files=2)


def test_a_bomb_is_refused_by_its_ratio_though_the_bound_is_large(tmp_path, target):
    zeros = {"bomb.bmp": bytes(30_000_000)}  # packs a thousandfold
    refuses(make_zip(tmp_path / "a.zip", zeros, compression=zipfile.ZIP_DEFLATED), target, r"more than 10\.0MB")
    refuses(make_tar(tmp_path / "a.tar.gz", zeros), target, r"more than 10\.0MB")


def test_a_zip_that_lies_about_a_size_is_refused(tmp_path, target):
    content = bytes(9_000_000)
    path = make_zip(tmp_path / "set.zip", {"a.bmp": content}, compression=zipfile.ZIP_DEFLATED)
    true, false = len(content).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    raw = path.read_bytes()
    assert raw.count(true) == 2  # in the file's header and in the directory
    path.write_bytes(raw.replace(true, false))
    refuses(path, target, "damaged")


def test_a_tar_header_that_asks_for_memory_is_refused(tmp_path, target):
    """A long-name header may be of any size, and tarfile reads it whole."""
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 80_000_000
    with gzip.open(tmp_path / "set.tar.gz", "wb") as archive:
        archive.write(header.tobuf(tarfile.GNU_FORMAT) + bytes(header.size))
    refuses(tmp_path / "set.tar.gz", target, "unpacks to more than", max_bytes=10_000_000)


# --- damage


def test_an_encrypted_zip_is_said_to_be_one(tmp_path, target):
    path = make_zip(tmp_path / "set.zip", {"a.jpg": b"1"})
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1  # the flag in the directory
    path.write_bytes(raw)
    refuses(path, target, "'a.jpg' in it is encrypted")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_an_archive_cut_short_is_refused(make, target, share):
    archive = make()
    raw = archive.read_bytes()
    archive.write_bytes(raw[: int(share * len(raw))])
    refuses(archive, target, "its end is missing|is damaged")


def test_a_flipped_byte_in_the_content_is_noticed(make, target):
    archive = make()
    raw = bytearray(archive.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    archive.write_bytes(raw)
    refuses(archive, target, "is damaged")


def test_no_damage_ends_in_anything_but_a_message(make, target):
    """Every byte of a small archive changed in turn: no file with other content comes out, and no traceback."""
    contents = {"a/b.jpg": b"123", "c.csv": b"x,y\n"}
    archive = make(contents)
    raw = archive.read_bytes()
    refused = 0
    for place in range(len(raw)):
        flipped = raw[place] ^ (1 << place % 8)
        archive.write_bytes(raw[:place] + bytes([flipped]) + raw[place + 1 :])
        try:
            files = unpack(archive, target, **BOUNDS)
            assert {path.read_bytes() for path in files} <= set(contents.values())
        except UserError:
            refused += 1
        shutil.rmtree(target, ignore_errors=True)
    assert refused > len(raw) / 3  # the rest are times, permissions and letters of names


def test_a_file_that_is_no_archive_is_said_to_be_none(tmp_path, target):
    (tmp_path / "set.zip").write_text("<html>Log in to download</html>")
    refuses(tmp_path / "set.zip", target, "neither a zip nor a tar.gz")


def test_an_archive_without_files_is_refused(make, target):
    refuses(make({"__MACOSX/a.jpg": b""}), target, "there is no file in it")


def test_an_archive_that_is_not_there_is_said(tmp_path, target):
    with pytest.raises(UserError, match="No such file"):
        unpack(tmp_path / "set.zip", target, **BOUNDS)


# --- the disk


def test_room_is_asked_for_before_the_first_byte(tmp_path, target, monkeypatch):
    unpacked = sum(map(len, FILES.values()))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("exp_tools.io.shutil.disk_usage", lambda _: usage(0, 0, unpacked - 1))
    refuses(make_zip(tmp_path / "set.zip", FILES), target, r"needs 70\.0kB .* make room for 1 bytes more")


def test_a_disk_that_fills_up_leaves_nothing(make, target, monkeypatch):
    archive, real_open = make(), Path.open

    def open_on_full_disk(path, *args, **kwargs):
        if path.name == "b.jpg":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_on_full_disk)
        refuses(archive, target, "No space left on device")
    assert len(unpack(archive, target, **BOUNDS)) == 3


def test_the_marker_records_the_archive(make, target):
    archive = make({"a.jpg": b"123"})
    unpack(archive, target, **BOUNDS)
    marker = json.loads((target / unpack_module.MARKER).read_text())
    assert marker["files"] == {"a.jpg": 3}
    assert marker["size"] == archive.stat().st_size
