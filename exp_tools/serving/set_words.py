"""A prediction set in words for a person: what is not excluded, at what level, and for what kind of images."""

from collections.abc import Mapping, Sequence
from typing import Any

from exp_tools.evaluation.prediction_sets import always_held
from exp_tools.taxonomy import MELANOMA, is_drawn

NO_SETS = "this model file holds no prediction sets"


def set_note(sets: Mapping[str, Any], names: Mapping[str, str], held: Sequence[str], decided: str, source: str) -> str:
    """What a set says, without a full stop at the end. It never says that something is excluded for good.

    Parameters
    ----------
    sets : of the model file, not {}
    names : name of each class for people, in the model's order
    held : codes in the set
    decided : code of the diagnosis
    source : of the training data
    """
    parts = [_melanoma(sets, names, held, source) if MELANOMA in names else _members(names, held)]
    if held and decided not in held:
        parts.append(
            f"the diagnosis, {names[decided]}, is not in the set: two rules disagree, so leave the image to a human"
        )
    always = [f"{names[code]} ({count})" for code, count in always_held(sets).items()]
    if always:
        parts.append(
            f"in every set, as validation has fewer lesions than the {sets['needed']} needed: {', '.join(always)}"
        )
    return "; ".join(parts)


def _melanoma(sets: Mapping[str, Any], names: Mapping[str, str], held: Sequence[str], source: str) -> str:
    melanoma, level = names[MELANOMA], f"{100 * sets['coverage']:.4g} %"
    if not held:
        return (
            f"melanoma cannot be excluded: the set is empty, as the image fits no diagnosis as {level} of its "
            "validation lesions do; leave it to a human"
        )
    if MELANOMA in held:
        return f"melanoma cannot be excluded: {_members(names, held)}"
    like = "synthetic images" if is_drawn(source) else f"dermoscopic images like those of {source}"
    rest = f"{100 - 100 * sets['coverage']:.4g} %"
    return (
        f"{_members(names, held)}; {melanoma} is not in it, at a coverage of {level}: on average, up to {rest} of the "
        f"melanomas in {like} are missed this way, so this is no all-clear; for other images nothing is guaranteed"
    )


def _members(names: Mapping[str, str], held: Sequence[str]) -> str:
    if not held:
        return "the set is empty: the image fits no diagnosis, leave it to a human"
    if len(held) == len(names):
        return f"the set holds every diagnosis that the model knows ({len(names)}), so it excludes none"
    return f"the set holds {', '.join(names[code] for code in held)}"
