"""Give every image to train, validation or test so that no lesion is in two, and prove it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from exp_tools.errors import UserError, require_file
from exp_tools.params import SplitParams

SPLITS = ("train", "val", "test")


def allocate_groups(dx: Sequence[str], groups: Sequence[str], fractions: Sequence[float], seed: int) -> np.ndarray:
    """Share whole groups out over parts so that each class meets the parts' fractions as nearly as group sizes permit.

    Groups are taken one at a time, the largest first and equal ones in seeded random order. One of several images
    goes to the part that still lacks the largest share of its own quota of the group's diagnoses, so that large and
    small lesions are spread alike over all parts; single images, which come last, go where most images are lacking
    and so even out the rest.

    Parameters
    ----------
    dx : diagnosis of each image [N]
    groups : what must stay together [N]
    fractions : share of each part, adding up to 1
    seed : same seed, same parts

    Returns
    -------
    int array [N], the part of each image
    """
    codes, dx_index = np.unique(np.asarray(dx, dtype=str), return_inverse=True)
    names, group_index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    content = np.zeros((len(names), len(codes)))
    np.add.at(content, (group_index, dx_index), 1)
    quota = np.outer(fractions, content.sum(axis=0))
    need = quota.copy()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(names))
    mixed = (content > 0).sum(axis=1)
    size = content.sum(axis=1)
    order = order[np.lexsort((-size[order], -mixed[order]))]
    part_of = np.empty(len(names), dtype=int)
    for group in order:
        has = np.flatnonzero(content[group])
        lack = need[:, has] / quota[:, has] if size[group] > 1 else need[:, has]
        part = int(np.argmax(lack @ content[group, has]))
        part_of[group] = part
        need[part] -= content[group]
    return part_of[group_index]


def assign_splits(labels: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Split a label table.

    Parameters
    ----------
    labels : columns image_id, group_id, dx
    params : `holdout` shares groups out by `fractions`; `kfold` makes `folds` equal parts, of which part `fold` is the
        test set, the next one validation and the rest train

    Returns
    -------
    DataFrame image_id, group_id, dx, split ("train", "val" or "test"), fold (the image's part under kfold, else empty),
    in the order of `labels`
    """
    if labels.empty:
        raise UserError("there is no image to split; look at data/prepared/labels.csv")
    if params.scheme == "holdout":
        part = allocate_groups(labels["dx"], labels["group_id"], params.fractions, params.seed)
        names, fold = np.array(SPLITS), pd.array([pd.NA] * len(labels), dtype="Int64")
    else:
        part = allocate_groups(labels["dx"], labels["group_id"], [1 / params.folds] * params.folds, params.seed)
        names = np.array(["train"] * params.folds, dtype="<U5")
        names[params.fold], names[(params.fold + 1) % params.folds] = "test", "val"
        fold = pd.array(part, dtype="Int64")
    return labels[["image_id", "group_id", "dx"]].assign(split=names[part], fold=fold)


def assert_disjoint(splits: pd.DataFrame) -> None:
    """Raise when a group or an image is in two splits, or a split is empty."""
    crossing = splits.groupby("group_id")["split"].nunique().loc[lambda count: count > 1]
    if len(crossing):
        raise AssertionError(f"{len(crossing)} groups are in two splits: {list(crossing.index[:5])}")
    if splits["image_id"].duplicated().any():
        raise AssertionError("an image is in the splits twice")
    for split in SPLITS:
        if not (splits["split"] == split).any():
            raise UserError(
                f"the {split} split is empty: {len(splits)} images are too few for these fractions or folds"
            )


def summarise_splits(splits: pd.DataFrame, params: SplitParams) -> dict[str, object]:
    """Counts and shares a split, the proof that no group crosses, and what a split by image would have leaked."""
    counts = splits.groupby(["split", "dx"]).size().unstack(fill_value=0).reindex(SPLITS)
    share = counts / counts.sum()
    part = 1 / params.folds
    target = pd.Series(params.fractions if params.scheme == "holdout" else [1 - 2 * part, part, part], index=SPLITS)
    return {
        "groups_in_two_splits": int((splits.groupby("group_id")["split"].nunique() > 1).sum()),
        "largest_share_gap_points": float(100 * share.sub(target, axis=0).abs().to_numpy().max()),
        "leak_of_a_split_by_image": leak_of_random_split(splits, params.seed),
        **{
            split: {
                "images": int((splits["split"] == split).sum()),
                "groups": int(splits.loc[splits["split"] == split, "group_id"].nunique()),
                "classes": {dx: int(count) for dx, count in counts.loc[split].items()},
            }
            for split in SPLITS
        },
        "classes_missing": {
            split: [dx for dx, count in counts.loc[split].items() if count == 0]
            for split in SPLITS
            if (counts.loc[split] == 0).any()
        },
    }


def leak_of_random_split(splits: pd.DataFrame, seed: int) -> float:
    """Share of test images whose group would also be in train, had the same table been shuffled image by image."""
    generator = np.random.default_rng([seed, 0x1EA4])
    shuffled = splits["split"].to_numpy()[generator.permutation(len(splits))]
    seen = set(splits.loc[shuffled == "train", "group_id"])
    test = splits.loc[shuffled == "test", "group_id"]
    return float(test.isin(seen).mean()) if len(test) else float("nan")


def read_splits(path: Path) -> pd.DataFrame:
    """Read splits.csv as `split` wrote it."""
    require_file(path, "split")
    types = {"image_id": str, "group_id": str, "dx": str, "split": str, "fold": "Int64"}
    return pd.read_csv(path, dtype=types, keep_default_na=False, na_values={"fold": [""]})
