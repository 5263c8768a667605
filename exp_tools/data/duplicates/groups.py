"""From duplicates to groups: which images must stay in one split, and a table of the pairs for people.

Pairs are tables with the columns image_id_1, image_id_2, inliers, and, where they are not all taken for true,
accepted, identical (same bytes or same pixels), size (long side in pixels of the smaller image as the two were
compared, 0 where they were not), similarity (of their embeddings, NaN without) and judged (JUDGES).
"""

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

JUDGES = ("geometry", "published", "by eye", "verdict")
"""Who says whether a pair shows the same skin: the key points, a published list, we who looked at it, or the user."""

REPORT_COLUMNS = [
    "image_id_1",
    "image_id_2",
    "inliers",
    "size",
    "similarity",
    "accepted",
    "judged",
    "identical",
    "same_lesion",
    "same_dx",
    "same_sex",
    "same_site",
    "age_difference",
    "lesion_1",
    "lesion_2",
    "dx_1",
    "dx_2",
]


def known_pairs(name: str) -> pd.DataFrame | None:
    """The shipped pairs of a data set, columns image_id_1, image_id_2, inliers, size, judged; None when it has no list.

    A list holds pairs of different lesions, and identical images: what the search found and we looked at ("geometry"),
    what others published, and what the eye alone decided.
    """
    source = files("exp_tools.data.duplicates") / "known" / f"{name}_duplicates.csv"
    if not source.is_file():
        return None
    with source.open(encoding="utf-8") as text:
        return pd.read_csv(text, dtype={"image_id_1": str, "image_id_2": str, "inliers": int, "size": int})


def name_pairs(
    found: pd.DataFrame, image_ids: Sequence[str], identical: Sequence[tuple[int, int]] = ()
) -> pd.DataFrame:
    """Give the result of a search the images' names.

    Parameters
    ----------
    found : result of `find_duplicates` on the images, in the order of `image_ids`
    image_ids : name of each image
    identical : result of `identical_files`; pairs that the search does not have are added with 0 inliers

    Returns
    -------
    DataFrame image_id_1, image_id_2, inliers, accepted, identical, size, similarity, judged, by place of the images
    """
    bytes_equal = pd.DataFrame(identical, columns=["first", "second"]).astype(int).assign(bytes_equal=True)
    pairs = found[["first", "second", "inliers", "accepted", "exact", "size", "similarity"]].merge(
        bytes_equal, on=["first", "second"], how="outer"
    )
    same = pairs["exact"].eq(True) | pairs["bytes_equal"].eq(True)
    names = np.asarray(image_ids, dtype=object)
    return pd.DataFrame(
        {
            "image_id_1": names[pairs["first"]],
            "image_id_2": names[pairs["second"]],
            "inliers": pairs["inliers"].fillna(0).astype(int),
            "accepted": pairs["accepted"].eq(True) | same,
            "identical": same,
            "size": pairs["size"].fillna(0).astype(int),
            "similarity": pairs["similarity"].astype(float),
            "judged": "geometry",
        }
    )


def group_ids(
    lesion_ids: Sequence[str], image_ids: Sequence[str], pairs: pd.DataFrame, groups: Sequence[str] | None = None
) -> np.ndarray:
    """Groups of images for one split: of one lesion, one group, or an accepted pair, directly or through others.

    Parameters
    ----------
    lesion_ids : lesion of each image [N]; "" makes an image its own lesion, of the image's name
    image_ids : name of each image [N]
    pairs : pairs of images; those with an image that is not among `image_ids` say nothing here and are left out
    groups : group of each image [N] (a patient, say), "" for none; None: there are none. A group and a lesion that are
        called alike have nothing to do with each other

    Returns
    -------
    object array [N] of str, the group of each image: the first of its lesions in alphabetical order
    """
    images = np.asarray(image_ids, dtype=object)
    lesions = np.asarray(lesion_ids, dtype=object)
    lesions = np.where(lesions == "", images, lesions)
    names, lesion_of = np.unique(lesions.astype(str), return_inverse=True)
    named = pd.Series(np.full(len(images), "") if groups is None else np.asarray(groups, dtype=object), dtype=object)
    has_group = (named != "").to_numpy()
    group_of = len(names) + pd.factorize(named[has_group])[0]

    accepted = pairs[pairs["accepted"]] if "accepted" in pairs else pairs
    place = pd.Series(lesion_of, index=images)
    ends = [place.reindex(accepted[column]).to_numpy(dtype=float) for column in ("image_id_1", "image_id_2")]
    here = ~np.isnan(ends[0]) & ~np.isnan(ends[1])
    edges = (
        np.concatenate([ends[0][here].astype(int), lesion_of[has_group]]),
        np.concatenate([ends[1][here].astype(int), group_of]),
    )
    nodes = len(names) + len(set(group_of))
    graph = coo_array((np.ones(len(edges[0]), dtype=bool), edges), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][: len(names)]
    # `names` is sorted, so the first lesion of a component is its smallest.
    _, smallest, member = np.unique(component, return_index=True, return_inverse=True)
    return names[smallest][member][lesion_of].astype(object)


def with_groups(labels: pd.DataFrame, pairs: pd.DataFrame | None = None) -> pd.DataFrame:
    """A label table with `group_id` behind `group`: the union of lesion, group and accepted pairs."""
    pairs = pd.DataFrame(columns=["image_id_1", "image_id_2"]) if pairs is None else pairs
    found = group_ids(labels["lesion_id"], labels["image_id"], pairs, labels["group"])
    labels = labels.copy()
    labels.insert(labels.columns.get_loc("group") + 1, "group_id", found)
    return labels


def pair_report(labels: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Add to each pair whether lesion, diagnosis, age and sex agree.

    Parameters
    ----------
    labels : columns image_id, lesion_id, dx, sex and localization ("unknown" for missing), age (years, NaN for missing)
    pairs : pairs of images; those with an image that `labels` does not have are left out

    Returns
    -------
    DataFrame with REPORT_COLUMNS, most inliers first; same_sex and same_site are missing where one of the two is
    unknown, and age_difference (years, never negative) where one age is.
    """
    about = labels.set_index("image_id")
    pairs = pairs[pairs["image_id_1"].isin(about.index) & pairs["image_id_2"].isin(about.index)]
    one, two = (about.loc[pairs[column]].reset_index(drop=True) for column in ("image_id_1", "image_id_2"))
    pairs = pairs.reset_index(drop=True)

    def same(column: str) -> pd.Series:
        known = (one[column] != "unknown") & (two[column] != "unknown")
        return (one[column] == two[column]).astype("boolean").where(known)

    report = pd.DataFrame(
        {
            **{column: pairs[column] for column in ("image_id_1", "image_id_2", "inliers")},
            "size": pairs.get("size", 0),
            "similarity": pairs.get("similarity", np.nan),
            "accepted": pairs.get("accepted", True),
            "judged": pairs.get("judged", "geometry"),
            "identical": pairs.get("identical", False),
            "same_lesion": one["lesion_id"] == two["lesion_id"],
            "same_dx": one["dx"] == two["dx"],
            "same_sex": same("sex"),
            "same_site": same("localization"),
            "age_difference": (one["age"] - two["age"]).abs(),
            "lesion_1": one["lesion_id"],
            "lesion_2": two["lesion_id"],
            "dx_1": one["dx"],
            "dx_2": two["dx"],
        }
    )
    return report.sort_values("inliers", ascending=False, kind="stable", ignore_index=True)[REPORT_COLUMNS]
