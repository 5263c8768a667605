"""What follows from duplicates: which images must stay together, and a table of the pairs for a person to read.

Pairs are tables with the columns image_id_1, image_id_2, inliers, and, where they are not all taken for true,
accepted and identical.
"""

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

REPORT_COLUMNS = [
    "image_id_1",
    "image_id_2",
    "inliers",
    "accepted",
    "identical",
    "same_lesion",
    "same_dx",
    "same_sex",
    "age_difference",
    "lesion_1",
    "lesion_2",
    "dx_1",
    "dx_2",
]


def known_pairs(name: str) -> pd.DataFrame | None:
    """The shipped pairs of a data set, columns image_id_1, image_id_2, inliers; None when it has no list.

    A list holds what `find_duplicates` found and a person looked at: pairs of different lesions, and identical images.
    """
    source = files("exp_tools.data.duplicates") / "known" / f"{name}_duplicates.csv"
    if not source.is_file():
        return None
    with source.open(encoding="utf-8") as text:
        return pd.read_csv(text, dtype={"image_id_1": str, "image_id_2": str, "inliers": int})


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
    DataFrame image_id_1, image_id_2, inliers, accepted, identical (same bytes or same pixels), by place of the images
    """
    bytes_equal = pd.DataFrame(identical, columns=["first", "second"]).astype(int).assign(bytes_equal=True)
    pairs = found[["first", "second", "inliers", "accepted", "exact"]].merge(
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
        }
    )


def group_ids(lesion_ids: Sequence[str], image_ids: Sequence[str], pairs: pd.DataFrame) -> np.ndarray:
    """Unite lesions that accepted pairs connect, directly or through others.

    Parameters
    ----------
    lesion_ids : lesion of each image [N]; "" makes an image its own lesion, of the image's name
    image_ids : name of each image [N]
    pairs : pairs of images; those with an image that is not among `image_ids` say nothing here and are left out

    Returns
    -------
    object array [N] of str, the group of each image: the first of its lesions in alphabetical order
    """
    lesions = np.asarray(lesion_ids, dtype=object)
    lesions = np.where(lesions == "", np.asarray(image_ids, dtype=object), lesions)
    names, lesion_of = np.unique(lesions.astype(str), return_inverse=True)
    accepted = pairs[pairs["accepted"]] if "accepted" in pairs else pairs
    place = pd.Series(lesion_of, index=np.asarray(image_ids, dtype=object))
    ends = [place.reindex(accepted[column]).to_numpy(dtype=float) for column in ("image_id_1", "image_id_2")]
    here = ~np.isnan(ends[0]) & ~np.isnan(ends[1])
    edges = tuple(end[here].astype(int) for end in ends)
    graph = coo_array((np.ones(here.sum(), dtype=bool), edges), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    # `names` is sorted, so the first lesion of a component is its smallest.
    _, smallest = np.unique(component, return_index=True)
    return names[smallest][component][lesion_of].astype(object)


def pair_report(labels: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Say of each pair whether lesion, diagnosis, age and sex agree.

    Parameters
    ----------
    labels : columns image_id, lesion_id, dx, sex ("unknown" for missing), age (years, NaN for missing)
    pairs : pairs of images; those with an image that `labels` does not have are left out

    Returns
    -------
    DataFrame with REPORT_COLUMNS, most inliers first; same_sex is missing where one sex is unknown, and age_difference
    (years, never negative) where one age is.
    """
    about = labels.set_index("image_id")
    pairs = pairs[pairs["image_id_1"].isin(about.index) & pairs["image_id_2"].isin(about.index)]
    one, two = (about.loc[pairs[column]].reset_index(drop=True) for column in ("image_id_1", "image_id_2"))
    pairs = pairs.reset_index(drop=True)
    sex_known = (one["sex"] != "unknown") & (two["sex"] != "unknown")
    report = pd.DataFrame(
        {
            **{column: pairs[column] for column in ("image_id_1", "image_id_2", "inliers")},
            "accepted": pairs.get("accepted", True),
            "identical": pairs.get("identical", False),
            "same_lesion": one["lesion_id"] == two["lesion_id"],
            "same_dx": one["dx"] == two["dx"],
            "same_sex": (one["sex"] == two["sex"]).astype("boolean").where(sex_known),
            "age_difference": (one["age"] - two["age"]).abs(),
            "lesion_1": one["lesion_id"],
            "lesion_2": two["lesion_id"],
            "dx_1": one["dx"],
            "dx_2": two["dx"],
        }
    )
    return report.sort_values("inliers", ascending=False, kind="stable", ignore_index=True)[REPORT_COLUMNS]
