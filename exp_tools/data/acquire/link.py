"""Fill a folder with links to a source's files: from the user's copy, unpacked or zipped, or from a download."""

import filecmp
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exp_tools.data.acquire.access import overlap, require_whole
from exp_tools.data.acquire.archives import archive_kind, content_digest, holds_news, zip_members
from exp_tools.data.acquire.managed_folder import MARKER
from exp_tools.data.acquire.unpack import unpack
from exp_tools.data.images.decode import files_below, is_clutter, walk_files
from exp_tools.data.images.formats import READ, image_id, is_image
from exp_tools.data.images.masks import find_masks
from exp_tools.data.labels.select import subset_of_lesions
from exp_tools.data.sources.registry import (
    OPTIONS_OF_TABLES,
    DatasetSpec,
    SourceOptions,
    licence_text,
    load_source,
    read_source,
    spec_of,
    write_options,
)
from exp_tools.data.sources.tables import OTHERS, is_table
from exp_tools.errors import UserError
from exp_tools.io import atomic_write, link_file, scratch_folder
from exp_tools.project import users_path

LICENCE = "LICENCE.txt"
STORE = "downloads"
MAX_BYTES, MAX_FILES = 200 * 10**9, 500_000
"""The files that an archive may contain."""
DEEPEST = 3
"""How many archives may be inside one another."""


def provide(name: str, wanted: SourceOptions, raw: Path, *, root: Path, processes: int) -> str:
    """Fill the folder `raw` with links to a source's images and tables.

    Parameters
    ----------
    name : the source
    wanted : folders, tables and limit
    raw : the folder to fill; it must not hold the user's files
    root : what relative folders are relative to; it holds the store of downloads
    processes : for a source that draws its pictures

    Returns
    -------
    what was done, in words

    Raises
    ------
    UserError
        A folder is missing or holds no image, an archive or a download fails, a table cannot be read.
    """
    source, facts = load_source(name), spec_of(name)
    _refuse_unread(name, source, wanted)
    if hasattr(source, "provide"):
        done = source.provide(wanted, raw, root=root, processes=processes)
    elif hasattr(source, "PARTS"):
        done = "; ".join(
            _fill(part, getattr(wanted, key), wanted, raw / part, root, f"data.{key}") for part, key in source.PARTS
        )
    else:
        done = _fill(name, wanted.dir, wanted, raw, root, "data.dir")
    if text := licence_text(facts):
        with atomic_write(raw / LICENCE) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return done + _limit(name, wanted, raw)


def _refuse_unread(name: str, source: Any, wanted: SourceOptions) -> None:
    """Raise UserError for an option that the source would not look at."""
    for key in (*OPTIONS_OF_TABLES, "query"):
        if getattr(wanted, key) and key not in getattr(source, "OPTIONS", ()):
            raise UserError(f"data.{key} is of no use with data.source={name}; docs/data.md says which sources read it")


def _fill(name: str, folder: str | None, wanted: SourceOptions, raw: Path, root: Path, key: str) -> str:
    facts, store = spec_of(name), root / STORE
    raw.mkdir(parents=True, exist_ok=True)
    if wanted.query is not None:
        if folder is not None:
            raise UserError(f"data.query downloads and {key} is your own copy: set one of them to null")
        from exp_tools.data.acquire.isic import download_query

        origins = [download_query(wanted.query, store)]
        came = f"downloaded for {wanted.query}"
    elif folder is None:
        origins = _download(facts, store, key)
        came = "downloaded"
    else:
        origins = [_local(folder, root, key, facts)]
        came = f"linked from {folder}"
        _link_tables(wanted, origins[0], raw, root)
    if chosen := {key: getattr(wanted, key) for key in OPTIONS_OF_TABLES if getattr(wanted, key)}:
        write_options(raw, **chosen)
    taken = _Taken()
    for origin in origins:
        _link_tree(origin, raw, store, facts, taken)
    if not taken.images:
        raise UserError(
            f"{key} {folder!r}: there is no image ({READ}) in {origins[0]} or below it"
            + (f"; {facts.title} is available from {facts.where}" if facts.where else "")
        )
    again = f"; {taken.copies:,} second copies of the same image were left out" if taken.copies else ""
    others = ", ".join(f"{count:,} {ending}" for ending, count in sorted(taken.others.items()))
    passed = f"; passed over, being no images and no tables: {others}" if others else ""
    return f"{taken.images:,} images of {facts.title} {came}{again}{passed}"


def _download(facts: DatasetSpec, store: Path, key: str) -> list[Path]:
    """Folders and files that hold a set's verified content."""
    if not facts.files:
        got = f"; get it from {facts.where}" if facts.where else ""
        raise UserError(f"{facts.title} is not downloaded by this project{got} and set {key} to its folder")
    from exp_tools.data.acquire.fetch import fetch  # here, so that who downloads nothing waits for no network library

    origins = []
    for file in facts.files:
        path = fetch(file, store)
        origins.append(_unpacked(path, store, str(path.stat().st_size)) if file.archive else path)
    return origins


def _unpacked(archive: Path, store: Path, version: str) -> Path:
    target = store / "unpacked" / f"{archive.stem}-{version}"
    unpack(archive, target, max_bytes=MAX_BYTES, max_files=MAX_FILES)
    return target


def _local(folder: str, root: Path, key: str, facts: DatasetSpec) -> Path:
    path = users_path(folder, root)
    if path.is_file():
        raise UserError(f"{key} {folder!r}: {path} is a file; name the folder that it lies in (archives are unpacked)")
    if not path.is_dir():
        got = f"; {facts.title} is available from {facts.where}" if facts.where else ""
        raise UserError(f"{key} {folder!r}: there is no folder {path}{got}")
    require_whole(path, dead_links=facts.folders_are_labels)
    return path


def refuse_own_folder(wanted: SourceOptions, filled: Sequence[Path], root: Path) -> None:
    """Raise UserError when the user's files are inside a folder that the pipeline fills, or contain one."""
    for key in ("dir", "second_dir", "table", "test_table"):
        if (named := getattr(wanted, key)) is None:
            continue
        path = users_path(named, root)
        if "table" in key and not path.is_file():  # it lies in data.dir
            continue
        for output in filled:
            places = {output.parent.resolve() / output.name, (root / output.parent).resolve() / output.name}
            if any(overlap(path, place) for place in places):
                raise UserError(
                    f"data.{key} {named!r}: {path} and {output}, which the pipeline fills, overlap. Nothing was "
                    "touched. Move your files to a folder of their own, outside of those that the pipeline writes, and "
                    f"set data.{key} to it"
                )


def _link_tables(wanted: SourceOptions, folder: Path, raw: Path, root: Path) -> None:
    """Take in the tables that the user names, from the set's folder or from anywhere else."""
    chosen = {}
    for key, name in (("table", wanted.table), ("test_table", wanted.test_table)):
        if name is None:
            continue
        path = next((path for path in (folder / name, users_path(name, root)) if path.is_file()), None)
        if path is None:
            raise UserError(f"data.{key} {name!r}: there is no such file in {folder} or {root}")
        path = path.resolve()
        chosen[key] = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
        if not (raw / chosen[key]).exists():
            link_file(path, raw / chosen[key])
    if chosen:
        write_options(raw, **chosen)


@dataclass
class _Taken:
    """What has been linked: how many images, the first file of each name, second copies, endings passed over."""

    images: int = 0
    copies: int = 0
    first: dict[str, Path] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def _link_tree(origin: Path, raw: Path, store: Path, facts: DatasetSpec, taken: _Taken, depth: int = 0) -> None:
    """Link images and tables below `origin`, unpacking zip archives with new content; what was linked goes to `taken`.

    Raises
    ------
    UserError
        An archive of another kind is there, one that is no zip, or archives are more than DEEPEST inside one another.
    """
    archives, unread = [], []
    for path, place in _files(origin):
        ending = path.suffix.lower()
        if ending == ".zip":
            archives.append((path, place))
        elif is_image(path):
            _link_image(path, raw / place, facts, taken)
        elif is_table(path) or ending in (".txt", *OTHERS) or (not ending and "metadata" in path.name.lower()):
            _link(path, raw / place)
        elif kind := archive_kind(path):
            unread.append(f"{path} ({kind})")
        else:
            taken.others[ending or "without ending"] += 1
    if unread:
        raise UserError(
            f"{', '.join(unread)}: of archives only .zip is read here, and images in it would be left out. Unpack it "
            "into the folder (or move it away if it holds none)"
        )
    for archive, place in archives:
        members = zip_members(archive)
        if not (facts.folders_are_labels or holds_news(archive, members, taken.first)):
            continue
        if depth == DEEPEST:
            raise UserError(f"{archive}: archives are more than {DEEPEST} deep inside one another; unpack it yourself")
        folder = _unpacked(archive, store, content_digest(members))
        try:
            _link_tree(folder, raw / place.with_suffix(""), store, facts, taken, depth + 1)
        except UserError as error:
            raise UserError(f"in {archive}: {error}") from error


def _link_image(path: Path, target: Path, facts: DatasetSpec, taken: _Taken) -> None:
    """Link an image or the mask of a lesion, unless it is a second copy or another mask."""
    name, stem = path.name.lower(), image_id(path.name).lower()
    if stem.endswith(facts.masks):
        if stem.endswith(facts.lesion_masks) and taken.first.setdefault(name, path) == path:
            _link(path, target)
        return
    first = None if facts.folders_are_labels else taken.first.setdefault(name, path)
    if first not in (None, path) and filecmp.cmp(first, path, shallow=False):
        taken.copies += 1
        return
    if (target.is_symlink() or target.exists()) and not filecmp.cmp(path, target, shallow=False):
        raise UserError(f"{path} and {target.resolve()} are two images of one name and place; rename one of them")
    taken.images += 1
    _link(path, target)


def _link(path: Path, target: Path) -> None:
    if not target.is_symlink() and not target.exists():
        link_file(path, target)


def _files(origin: Path) -> Iterator[tuple[Path, Path]]:
    """Files below a folder with their places in it, in order; or the one file."""
    if origin.is_file():
        yield origin, Path(origin.name)
        return
    for path in walk_files(origin):
        yield path, path.relative_to(origin)


def _limit(name: str, wanted: SourceOptions, raw: Path) -> str:
    """Leave about `limit` images: whole lesions, each class in its proportion; the other links go."""
    if wanted.limit is None:
        return ""
    table = read_source(name, raw)
    if wanted.limit >= len(table):
        return ""
    keep = table[subset_of_lesions(table, wanted.limit, wanted.seed)]
    kept = set(keep["file"])
    masks = find_masks(raw, spec_of(name).lesion_masks)
    stems = {image_id(Path(file).name) for file in kept}
    kept |= {str(path) for stem, path in masks.items() if stem in stems}
    for path in files_below(raw):
        if is_image(path) and str(path) not in kept:
            path.unlink()
    write_options(raw, subset=keep["image_id"].to_list())
    return f"; data.limit keeps {len(keep):,} of {len(table):,}"


def folder_changes(
    name: str, wanted: SourceOptions, raw: Path, *, root: Path, processes: int
) -> tuple[list[str], list[str]]:
    """Names of files that the user's folder has now and `raw` has not, and of those that it has no more.

    DVC does not see either, since the folder is outside of the project. Both are empty without a folder of the user's,
    and before `download` has filled `raw`.

    Raises
    ------
    UserError : as `provide`
    """
    then = _names(raw)
    if wanted.dir is None or not then:
        return [], []
    with scratch_folder() as folder:
        fresh = folder / "raw"
        provide(name, wanted, fresh, root=root, processes=processes)
        now = _names(fresh)
    return sorted(now - then), sorted(then - now)


def _names(folder: Path) -> set[str]:
    """The files of a filled folder, links to files that are gone among them."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    names = {path.relative_to(folder).as_posix() for path in paths}
    return {name for name in names if name != MARKER and not is_clutter(Path(name).name)}
