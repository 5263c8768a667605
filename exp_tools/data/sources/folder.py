"""Your own images in class folders: an image's diagnosis is the name of its folder.

A folder that is called like a diagnosis of the taxonomy, by code or name in any case, is that diagnosis ("Melanoma" is
mel); any other name is a class of its own. Where folders train/, val/ (or valid/, validation/) and test/ stand above
the class folders they are the `split`. Nothing is known of lesions.
"""

from pathlib import Path

import pandas as pd

from exp_tools.data.images.decode import index_images
from exp_tools.data.labels.synonyms import code_of, require_listed
from exp_tools.data.sources.registry import DatasetSpec, read_options
from exp_tools.errors import UserError

FACTS = DatasetSpec(title="your own class folders", folders_are_labels=True)
OPTIONS = ("classes",)
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read(raw: Path) -> pd.DataFrame:
    """A row per image; one whose name occurs in several folders gets its class in front of its id."""
    rows = []
    listed = read_options(raw).get("classes", {})
    classes = {word.casefold(): code for word, code in listed.items()}
    left_out: dict[str, list[str]] = {}
    words: list[str] = []
    for name, paths in index_images(raw).items():
        for path in paths:
            parts = path.relative_to(raw).parts
            if len(parts) < 2 or parts[-2].lower() in SPLITS:
                raise UserError(
                    f"{path.relative_to(raw)} is in no class folder; source folder expects CLASS/image.jpg, and "
                    "takes the folder's name for the diagnosis"
                )
            words.append(parts[-2])
            code = classes.get(parts[-2].casefold(), code_of(parts[-2]))
            if code is None:
                left_out.setdefault(parts[-2], []).append(name)
                continue
            image_id = name if len(paths) == 1 else f"{code}__{name}"
            split = next((SPLITS[part.lower()] for part in parts[:-2] if part.lower() in SPLITS), "")
            rows.append((image_id, image_id, code, split, str(path), path.relative_to(raw).as_posix(), 0))
    if listed:
        require_listed(pd.Series(words, dtype=str), listed, "the class folders")
    columns = ["image_id", "lesion_id", "dx", "split", "file", "table", "row"]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[:-1], str))
    table = table.sort_values("table", kind="stable", ignore_index=True).assign(source="folder")
    notes = [
        f"{len(ids):,} images of folder {word} are left out, as data.classes says" for word, ids in left_out.items()
    ]
    table.attrs |= {"notes": notes, "left_out": [name for ids in left_out.values() for name in ids]}
    return table
