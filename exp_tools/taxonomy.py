"""The known diagnoses, and the views of them that a task takes."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis: its code in label tables, name, description, and whether it is malignant or pre-malignant.

    `broader` is the one of the seven diagnoses that it is a kind of, for diagnoses that other sets tell apart.
    """

    code: str
    name: str
    description: str
    malignant: bool
    broader: str | None = None


DIAGNOSES = {
    diagnosis.code: diagnosis
    for diagnosis in (
        Diagnosis(
            "akiec", "Actinic keratosis", "actinic keratosis or intraepithelial carcinoma (Bowen's disease)", True
        ),
        Diagnosis("bcc", "Basal cell carcinoma", "the most common skin cancer; rarely spreads", True),
        Diagnosis(
            "bkl", "Benign keratosis", "seborrhoeic keratosis, solar lentigo or lichen-planus-like keratosis", False
        ),
        Diagnosis("df", "Dermatofibroma", "benign fibrous nodule of the skin", False),
        Diagnosis("mel", "Melanoma", "malignant tumour of the pigment cells", True),
        Diagnosis("nv", "Melanocytic nevus", "benign mole", False),
        Diagnosis("vasc", "Vascular lesion", "angioma, angiokeratoma, pyogenic granuloma or haemorrhage", False),
    )
}
"""The seven diagnoses of HAM10000 (Tschandl et al., Sci Data 5:180161, 2018), in the order every metric uses."""

OTHER_DIAGNOSES = {
    diagnosis.code: diagnosis
    for diagnosis in (
        Diagnosis("common_nevus", "Common nevus", "benign mole without atypia (PH2)", False, "nv"),
        Diagnosis("atypical_nevus", "Atypical nevus", "benign mole that looks irregular (PH2)", False, "nv"),
        Diagnosis("ak", "Actinic keratosis alone", "without intraepithelial carcinoma (ISIC 2019)", True, "akiec"),
        Diagnosis("scc", "Squamous cell carcinoma", "malignant tumour of keratinocytes (ISIC 2019)", True),
        Diagnosis("benign", "Benign", "anything that is not malignant (ISIC 2020, ISIC Archive)", False),
        Diagnosis("malignant", "Malignant", "malignant, of none of the other kinds (ISIC Archive)", True),
        Diagnosis("indeterminate", "Indeterminate", "neither clearly benign nor malignant (ISIC Archive)", False),
        Diagnosis("unk", "Unknown", "none of the other diagnoses of ISIC 2019", False),
    )
}
"""Diagnoses of other data sets."""

DRAWN_SOURCE = "synthetic"
"""The source of synthetic images. A model trained on them says nothing about real skin."""


def is_drawn(source: str) -> bool:
    """Whether the images of a source are drawn ones."""
    return source == DRAWN_SOURCE


TASKS = ("diagnosis", "melanoma")
MELANOMA = "mel"
NOT_MELANOMA = "non_mel"
"""The class of the task `melanoma` that is no diagnosis."""
MELANOMA_CLASSES = (NOT_MELANOMA, MELANOMA)


def task_classes(task: str, codes: Iterable[str]) -> list[str]:
    """Class names of a task in their fixed order.

    Parameters
    ----------
    task : "diagnosis" (one class a diagnosis) or "melanoma" (melanoma against everything else)
    codes : the diagnosis codes that the labels hold; known ones come first in taxonomy order, others sorted behind
    """
    if task == "melanoma":
        return list(MELANOMA_CLASSES)
    present = set(codes)
    return [code for code in DIAGNOSES if code in present] + sorted(present - DIAGNOSES.keys())


def task_label(task: str, code: str) -> str:
    """Name of the class that a diagnosis code belongs to under a task."""
    if task == "melanoma":
        return MELANOMA if code == MELANOMA else NOT_MELANOMA
    return code


def broader(code: str) -> str:
    """The diagnosis of the seven that a code is a kind of; a code of the seven, and any other, is its own."""
    diagnosis = OTHER_DIAGNOSES.get(code)
    return diagnosis.broader if diagnosis and diagnosis.broader else code
