"""Odd and bad archives among people's images, drawn in code: each is read, or refused in one line that says what to do.

What `unpack` alone does with an archive: test_unpack.py.
"""

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.pictures import PIXELS, encoded

from exp_tools.data.acquire.link import provide
from exp_tools.data.images.decode import files_below
from exp_tools.data.sources.registry import SourceOptions
from exp_tools.errors import UserError


def picture(number: int) -> bytes:
    """A picture of its own for every number, all of the same size in bytes."""
    return encoded("BMP", (PIXELS + number).astype("uint8"))


def zipped(files: dict[str, bytes], **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, archive.compression)
    return buffer.getvalue()


def tarred(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        member = tarfile.TarInfo("mel/1.bmp")
        member.size = len(picture(1))
        archive.addfile(member, io.BytesIO(picture(1)))
    return buffer.getvalue()


def twice() -> bytes:
    """Two files of one name."""
    return zipped({"mel/1.bmp": picture(1), "mel/2.bmp": picture(2)}).replace(b"2.bmp", b"1.bmp")


def with_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("mel/1.bmp")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def patched(content: bytes, local: int, central: int, value: bytes) -> bytes:
    """An archive of one file with a field changed in both of its headers, given by their places in these."""
    start = content.rindex(b"PK\1\2") + central
    content = content[:start] + value + content[start + len(value) :]
    return content[:local] + value + content[local + len(value) :]


def nested(depth: int) -> bytes:
    content = zipped({"mel/1.bmp": picture(1)})
    for _ in range(depth):
        content = zipped({"inner.zip": content})
    return content


def of_zip64() -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w") as archive,
        archive.open(zipfile.ZipInfo("mel/1.bmp"), "w", force_zip64=True) as file,
    ):
        file.write(picture(1))
    return buffer.getvalue()


ONE = zipped({"mel/1.bmp": picture(1)})
CRC = ONE.replace(picture(1)[-40:], bytes(40), 1)
EMPTY = {"nv/0.bmp": picture(0)}
"""What is beside every archive."""

ACCEPTED: dict[str, tuple[Callable[[], dict[str, bytes]], dict[str, bytes]]] = {
    "a zip of class folders": (lambda: {"set.zip": ONE}, {"set/mel/1.bmp": picture(1)}),
    "a zip for a class": (lambda: {"mel.zip": zipped({"1.bmp": picture(1)})}, {"mel/1.bmp": picture(1)}),
    "two zips of one name and size": (
        lambda: {"a/set.zip": ONE, "b/set.zip": zipped({"mel/1.bmp": picture(2)})},
        {"a/set/mel/1.bmp": picture(1), "b/set/mel/1.bmp": picture(2)},
    ),
    "the same zip twice": (
        lambda: {"a/set.zip": ONE, "b/set.zip": ONE},
        {"a/set/mel/1.bmp": picture(1), "b/set/mel/1.bmp": picture(1)},
    ),
    "a zip in a zip": (lambda: {"set.zip": nested(1)}, {"set/inner/mel/1.bmp": picture(1)}),
    "zip64": (lambda: {"set.zip": of_zip64()}, {"set/mel/1.bmp": picture(1)}),
    "images without endings": (lambda: {"set.zip": zipped({"mel/1": picture(1)})}, {"set/mel/1": picture(1)}),
    "umlauts in UTF-8": (
        lambda: {"set.zip": zipped({"mel/Müller.bmp": picture(1)})},
        {"set/mel/Müller.bmp": picture(1)},
    ),
    "umlauts in UTF-8 that are not marked so": (
        lambda: {"set.zip": patched(zipped({"mel/Müller.bmp": picture(1)}), 6, 8, b"\0\0")},
        {"set/mel/Müller.bmp": picture(1)},
    ),
    "umlauts in code page 437": (
        lambda: {"set.zip": zipped({"mel/M~ller.bmp": picture(1)}).replace(b"M~ller", b"M\x81ller")},
        {"set/mel/Müller.bmp": picture(1)},
    ),
    "what systems leave": (
        lambda: {
            "set.zip": zipped(
                {"mel/1.bmp": picture(1), "__MACOSX/mel/._1.bmp": b"x", "mel/@eaDir/1.bmp": b"x", ".git/x.bmp": b"x"}
            )
        },
        {"set/mel/1.bmp": picture(1)},
    ),
    "a folder called like a zip": (lambda: {"set.zip/mel/1.bmp": picture(1)}, {"set.zip/mel/1.bmp": picture(1)}),
    "a workbook and other files": (lambda: {"labels.xlsx": ONE, "paper.pdf": b"%PDF", "film.mp4": b"x"}, {}),
}

REFUSED: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "a path upwards": (lambda: {"set.zip": zipped({"../../1.bmp": picture(1)})}, "leads out of the folder"),
    "an absolute path": (lambda: {"set.zip": zipped({"/etc/1.bmp": picture(1)})}, "leads out of the folder"),
    "a path of Windows": (lambda: {"set.zip": zipped({"C:\\1.bmp": picture(1)})}, "leads out of the folder"),
    "a link": (lambda: {"set.zip": with_link()}, "is a link or a device"),
    "encrypted": (lambda: {"set.zip": patched(ONE, 6, 8, b"\1\0")}, "is encrypted; unpack it by hand"),
    "packed in an unknown way": (lambda: {"set.zip": patched(ONE, 8, 10, b"\x63\0")}, "packed in an unknown way"),
    "zips in zips without end": (lambda: {"set.zip": nested(5)}, "more than 3 deep inside one another"),
    "a bomb": (
        lambda: {"set.zip": zipped({"mel/1.bmp": bytes(30_000_000)}, compression=zipfile.ZIP_DEFLATED)},
        "unpacks to more than",
    ),
    "a name twice": (lambda: {"set.zip": twice()}, "twice"),
    "a wrong checksum": (lambda: {"set.zip": CRC}, "is damaged, incomplete"),
    "cut off": (lambda: {"set.zip": ONE[:-40]}, "is not a whole zip archive"),
    "its first half alone": (lambda: {"set.zip": ONE[: len(ONE) // 2]}, "is not a whole zip archive"),
    "0 bytes": (lambda: {"set.zip": b""}, "is not a whole zip archive"),
    "nothing in it": (lambda: {"set.zip": zipped({})}, "there is no file in it"),
    "only what macOS leaves": (lambda: {"set.zip": zipped({"__MACOSX/._1.bmp": b"x"})}, "there is no file in it"),
    "a RAR called zip": (lambda: {"set.zip": b"Rar!\x1a\7\1\0" + bytes(99)}, "whole zip archive (its content is RAR)"),
    "an image called zip": (lambda: {"set.zip": encoded("PNG")}, "whole zip archive (its content is PNG)"),
    "a page called zip": (lambda: {"set.zip": b"<!doctype html>"}, "is not a whole zip archive"),
    "tar.gz": (lambda: {"set.tar.gz": tarred("w:gz")}, "set.tar.gz (gzip): of archives only .zip is read"),
    "tar": (lambda: {"set.tar": tarred("w")}, "set.tar (tar): of archives only .zip is read"),
    "tar.xz": (lambda: {"set.tar.xz": tarred("w:xz")}, "set.tar.xz (xz): of archives only .zip is read"),
    "7z and rar": (
        lambda: {"a.7z": b"7z\xbc\xaf\x27\x1c" + bytes(99), "b.rar": b"Rar!\x1a\7\0" + bytes(99)},
        "b.rar (RAR): of archives only .zip is read",
    ),
    "a zip and a folder of other images in one place": (
        lambda: {"set.zip": ONE, "set/mel/1.bmp": picture(2)},
        "two images of one name and place; rename one of them",
    ),
}


@pytest.fixture
def link(tmp_path) -> Callable[..., str]:
    """Links a folder with these files, and an image that is fine, into tmp_path/raw; returns what was said."""

    def make(files: dict[str, bytes], source: str = "folder") -> str:
        for name, content in ({"nv/0.bmp": picture(0)} | files).items():
            path = tmp_path / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return provide(source, SourceOptions(dir="mine"), tmp_path / "raw", root=tmp_path, processes=1)

    return make


def linked(raw: Path) -> dict[str, bytes]:
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in files_below(raw)}


NORMAL = ("two zips of one name and size", "a path upwards", "tar.gz", "a RAR called zip", "a wrong checksum")


def sampled(cases: dict) -> list:
    return [
        pytest.param(*case, marks=[] if name in NORMAL else [pytest.mark.sweep], id=name)
        for name, case in cases.items()
    ]


@pytest.mark.parametrize(("make", "expected"), sampled(ACCEPTED))
def test_an_odd_archive_is_read(tmp_path, link, make, expected):
    for _ in range(2):  # a second run finds what the first one unpacked
        link(make())
        found = linked(tmp_path / "raw")
        assert {name: content for name, content in found.items() if name.endswith(("bmp", "1"))} == (
            {"nv/0.bmp": picture(0)} | expected
        )


@pytest.mark.parametrize(("make", "words"), sampled(REFUSED))
def test_a_bad_archive_is_refused_in_one_line(tmp_path, link, make, words):
    with pytest.raises(UserError) as error:
        link(make())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert all(str(tmp_path / "mine" / name) in str(error.value) for name in make() if "/" not in name)
    places = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*.bmp")}
    assert places <= {"mine", "raw", "downloads"}


def test_an_archive_that_may_not_be_read_is_not_called_damaged(link, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", forbidden)
    with pytest.raises(UserError, match=r"set\.zip: there is no permission to read it; chmod u\+r"):
        link({"set.zip": ONE})


def test_what_is_neither_image_nor_table_is_counted(link):
    said = link({"paper.pdf": b"%PDF", "film.mp4": b"x", "other.mp4": b"y", "mel/readme": b"z"})
    assert said.endswith("passed over, being no images and no tables: 2 .mp4, 1 .pdf, 1 without ending")


def test_an_archive_with_images_that_are_there_already_is_left_packed(tmp_path, link):
    table = "image_id,dx\n1,mel\n"
    files = {"labels.csv": table.encode(), "1.bmp": picture(1), "set.zip": ONE}
    assert "2 images" in link(files, "table")  # and nv/0.bmp
    assert not (tmp_path / "downloads").exists()
    other = files | {"set.zip": zipped({"mel/1.bmp": picture(1) + b"longer"})}
    assert "3 images" in link(other, "table")  # the same name, another picture: `prepare` calls it ambiguous


def test_the_corpus_is_as_large_as_it_says():
    assert len(ACCEPTED) + len(REFUSED) >= 30
    assert set(NORMAL) <= ACCEPTED.keys() | REFUSED.keys()
