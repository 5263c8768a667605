"""Give every image to train, validation or test so that no lesion is in two."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from exp_tools.data.labels.attributes import attribute_groups, check_attributes
from exp_tools.data.labels.table import DROPPED_FROM, EXTRA, ORIGINAL, VERDICT
from exp_tools.errors import UserError
from exp_tools.params import SplitParams

SPLITS = ("train", "val", "test")
STRATA = ("dx", "source", "sex")
"""Columns of every label table that `stratify` may name, besides further attributes."""
LEAKY = "image"
"""The scheme that parts lesions."""
UNUSED = "unused"
"""The split of an image that is in none: its lesion is in a test set that was given, or a verdict dropped it."""


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


def cover_classes(part: np.ndarray, dx: Sequence[str], groups: Sequence[str], parts: int) -> np.ndarray:
    """Give every part an image of every class that has at least as many groups as there are parts.

    Where a class is absent from a part, its smallest group moves there from the part that has most groups of the class;
    groups of several diagnoses stay. Returns the parts [N].
    """
    table = pd.DataFrame({"part": part, "dx": np.asarray(dx, dtype=str), "group": np.asarray(groups, dtype=str)})
    pure = table.groupby("group")["dx"].transform("nunique") == 1
    for code in np.unique(table["dx"]):
        of_class = table[table["dx"] == code]
        if of_class["group"].nunique() < parts:
            continue
        for empty in sorted(set(range(parts)) - set(of_class["part"])):
            movable = table[(table["dx"] == code) & pure]
            numbers = movable.groupby("part")["group"].nunique()
            if numbers.empty or numbers.max() < 2:
                break
            sizes = movable[movable["part"] == numbers.idxmax()].groupby("group").size()
            table.loc[table["group"] == sizes.idxmin(), "part"] = empty
    return table["part"].to_numpy()


def resolve_scheme(labels: pd.DataFrame, params: SplitParams) -> SplitParams:
    """The parameters with the scheme that `auto` stands for: official where images are marked as test, else holdout."""
    if params.scheme != "auto":
        return params
    return params.model_copy(update={"scheme": "official" if (labels["split"] == "test").any() else "holdout"})


def ignored_tests(labels: pd.DataFrame, params: SplitParams) -> int:
    """How many images are marked as test although the scheme takes no notice."""
    return 0 if params.scheme in ("official", "column") else int((labels["split"] == "test").sum())


def assign_splits(labels: pd.DataFrame, params: SplitParams) -> pd.DataFrame:
    """Split a label table.

    Parameters
    ----------
    labels : columns image_id, lesion_id, group_id, dx, split, and those that `stratify` names, each as it is called
        or as extra_<name>; values of the latter are united as `attribute_groups` says. Where verdicts changed labels,
        the split is that of the diagnoses before (ORIGINAL), so that no other image moves
    params : the scheme is one of
        auto: see `resolve_scheme`;
        holdout: groups are shared out by `fractions`;
        kfold: `folds` equal parts, of which part `fold` is the test set, the next one validation and the rest train;
        official, column: images that say so in `split` are the test set, and validation if any say so; the rest is
        train, or is shared out over train and validation; images of it whose group is in the test set are UNUSED;
        paper: of groups with exactly one image the last of `fractions`, rounded up, is the test set, each class in
        proportion; the rest is shared out over train and validation (Datta et al., arXiv:2105.03358);
        image: images are shared out by `fractions`, whatever lesion they show: LEAKY, to measure what a leak is worth

    Returns
    -------
    DataFrame image_id, group_id, dx, split ("train", "val", "test" or UNUSED), fold (the image's part under kfold, else
    empty), in the order of `labels`; images that a verdict dropped are UNUSED, and DROPPED_FROM has what they would be

    Raises
    ------
    UserError
        There is no image, or the labels do not say what the scheme needs, or lack what `stratify` names.
    """
    if labels.empty:
        raise UserError("there is no image to split; look at data/prepared/labels.csv")
    check_attributes(params.stratify, STRATA, labels, "split.stratify")
    params = resolve_scheme(labels, params)
    judged, labels = labels, labels.assign(dx=labels[ORIGINAL]) if ORIGINAL in labels else labels
    fold = pd.array([pd.NA] * len(labels), dtype="Int64")
    if params.scheme == "kfold":
        part = _share_out(labels, [1 / params.folds] * params.folds, params)
        names = np.array(["train"] * params.folds, dtype="<U6")
        names[params.fold], names[(params.fold + 1) % params.folds] = "test", "val"
        split, fold = names[part], pd.array(part, dtype="Int64")
    elif params.scheme in ("holdout", LEAKY):
        whole = labels.assign(group_id=labels["image_id"]) if params.scheme == LEAKY else labels
        split = np.array(SPLITS)[_share_out(whole, params.fractions, params)]
    else:
        split = _given_tests(labels, params)
        rest = split == ""
        ratio = np.array(params.fractions[:2]) / sum(params.fractions[:2])
        split[rest] = np.array(SPLITS[:2])[_share_out(labels[rest], ratio, params)]
    splits = judged[["image_id", "group_id", "dx"]].assign(split=split, fold=fold)
    dropped = judged[VERDICT] == "drop" if VERDICT in judged else pd.Series(False, index=judged.index)
    if not dropped.any():
        return splits
    return splits.assign(
        split=splits["split"].where(~dropped, UNUSED), **{DROPPED_FROM: splits["split"].where(dropped, "")}
    )


def _share_out(labels: pd.DataFrame, fractions: Sequence[float], params: SplitParams) -> np.ndarray:
    columns = [labels[name] if name in STRATA else attribute_groups(labels[EXTRA + name]) for name in params.stratify]
    strata = pd.concat(columns, axis=1).astype(str).agg("\t".join, axis=1)
    part = allocate_groups(strata, labels["group_id"], fractions, params.seed)
    return cover_classes(part, labels["dx"], labels["group_id"], len(fractions))


def _given_tests(labels: pd.DataFrame, params: SplitParams) -> np.ndarray:
    """The part of the split that is fixed in advance: split of each image, "" where it is still to be chosen."""
    if params.scheme == "paper":
        return np.where(_single_image_tests(labels, params), "test", "").astype("<U6")
    given = labels["split"].to_numpy(dtype="<U6")
    if not (given == "test").any():
        raise UserError(
            f"split.scheme {params.scheme} needs images that are marked as test, and none is: take a source with an "
            "official test set (isic2018), give your table a column `split` or a data.test_table, or use holdout"
        )
    groups = labels["group_id"].to_numpy()
    kept_apart = np.isin(groups, groups[given == "test"]) & (given != "test")
    if (given == "val").any():
        given[given == ""] = "train"
        # A group that was given to both goes to training whole.
        given[np.isin(groups, groups[given == "train"]) & (given == "val")] = "train"
    else:
        given[given == "train"] = ""
    given[kept_apart] = UNUSED
    if not np.isin(given, ["", "train"]).any():
        raise UserError("every image is test or shares its lesion with one that is: nothing is left to train on")
    return given


def _single_image_tests(labels: pd.DataFrame, params: SplitParams) -> np.ndarray:
    """Which images are the test set of the soft-attention paper: a stratified share of groups with one image."""
    single = np.flatnonzero(labels.groupby("group_id")["image_id"].transform("size").to_numpy() == 1)
    codes = labels["dx"].to_numpy(dtype=str)[single]
    total = math.ceil(round(params.fractions[2] * len(single), 6))
    names, counts = np.unique(codes, return_counts=True)
    quota = total * counts / max(len(single), 1)
    take = np.floor(quota).astype(int)
    take[np.argsort(take - quota, kind="stable")[: total - take.sum()]] += 1
    generator = np.random.default_rng([params.seed, 0x9A9E2])
    test = np.zeros(len(labels), dtype=bool)
    for name, count in zip(names, take, strict=True):
        test[generator.permutation(single[codes == name])[:count]] = True
    return test


def assert_disjoint(splits: pd.DataFrame, scheme: str = "holdout") -> None:
    """Raise when a group or an image is in two splits, or a split is empty; images that are UNUSED are in none.

    Under the scheme LEAKY groups may be in several.
    """
    used = splits[splits["split"] != UNUSED]
    crossing = used.groupby("group_id")["split"].nunique().loc[lambda count: count > 1]
    if len(crossing) and scheme != LEAKY:
        raise AssertionError(f"{len(crossing)} groups are in two splits: {list(crossing.index[:5])}")
    if splits["image_id"].duplicated().any():
        raise AssertionError("an image is in the splits twice")
    for split in SPLITS:
        if not (splits["split"] == split).any():
            raise UserError(
                f"the {split} split is empty: {len(splits)} images are too few for these fractions or folds"
            )


def summarise_splits(splits: pd.DataFrame, params: SplitParams, *, lesions_known: bool = True) -> dict[str, object]:
    """Counts and shares per split, and the leak that a split by image would have had."""
    used = splits[splits["split"] != UNUSED]
    counts = used.groupby(["split", "dx"]).size().unstack(fill_value=0).reindex(SPLITS, fill_value=0)
    gone = splits.get(DROPPED_FROM, pd.Series("", index=splits.index))
    dropped = gone != ""
    return {
        "scheme": params.scheme,
        "lesions_known": lesions_known,
        "unused_images_of_test_groups": int((splits["split"] == UNUSED).sum() - dropped.sum()),
        **({"dropped": {split: int((dropped & (gone == split)).sum()) for split in SPLITS}} if dropped.any() else {}),
        "largest_share_gap_points": _largest_gap(counts, params),
        "leak_of_a_split_by_image": leak_of_random_split(used, params.seed),
        **({"leak": leak(used)} if params.scheme == LEAKY else {}),
        **{
            split: {
                "images": int((used["split"] == split).sum()),
                "groups": int(used.loc[used["split"] == split, "group_id"].nunique()),
                "classes": {dx: int(count) for dx, count in counts.loc[split].items()},
                "class_shares": {
                    dx: float(share) for dx, share in (counts.loc[split] / counts.loc[split].sum()).items()
                },
            }
            for split in SPLITS
        },
        "classes_missing": _missing_classes(used, counts, params),
    }


def _largest_gap(counts: pd.DataFrame, params: SplitParams) -> float:
    """Largest difference of a class's share of a split from the requested one, in percentage points.

    Where the test set is given, only train and validation are compared, as shares of what is not test.
    """
    if params.scheme in ("holdout", "kfold", LEAKY):
        part = 1 / params.folds
        target = pd.Series(params.fractions if params.scheme != "kfold" else [1 - 2 * part, part, part], index=SPLITS)
    else:
        target = pd.Series(params.fractions[:2], index=SPLITS[:2]) / sum(params.fractions[:2])
    some = counts.loc[target.index]
    return float(100 * (some / some.sum()).sub(target, axis=0).abs().max().max())


def _missing_classes(used: pd.DataFrame, counts: pd.DataFrame, params: SplitParams) -> dict[str, dict[str, str]]:
    """For each split the classes that are not in it, and why."""
    groups = used.groupby("dx")["group_id"].nunique()
    parts = params.folds if params.scheme == "kfold" else len(SPLITS)
    given = params.scheme in ("official", "column", "paper")
    decided = "the given test set decides" if given else "its images have other labels now, or its groups are mixed"
    reasons = {
        dx: f"its {number} group(s) are fewer than {parts} parts" if number < parts else decided
        for dx, number in groups.items()
    }
    missing = {split: [dx for dx, count in counts.loc[split].items() if count == 0] for split in SPLITS}
    return {split: {dx: reasons[dx] for dx in codes} for split, codes in missing.items() if codes}


def leak_of_random_split(splits: pd.DataFrame, seed: int) -> float:
    """Share of test images whose group would also be in train, had the same table been shuffled image by image."""
    generator = np.random.default_rng([seed, 0x1EA4])
    return leak(splits.assign(split=splits["split"].to_numpy()[generator.permutation(len(splits))]))


def leak(splits: pd.DataFrame) -> float:
    """Share of test images whose group is in train as well; NaN without test images."""
    seen = set(splits.loc[splits["split"] == "train", "group_id"])
    test = splits.loc[splits["split"] == "test", "group_id"]
    return float(test.isin(seen).mean()) if len(test) else float("nan")
