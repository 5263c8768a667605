"""Heat maps of a case, computed when somebody looks at it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from exp_tools.app.cases.table import Cases
from exp_tools.app.parts import images, model_picker
from exp_tools.app.parts.charts import percent
from exp_tools.app.parts.settings import Settings
from exp_tools.app.parts.text import plain
from exp_tools.errors import UserError
from exp_tools.evaluation.made_with import parameters_of
from exp_tools.explain.overlay import is_flat, overlay
from exp_tools.explain.picture import flat_note
from exp_tools.project import MODEL, PREDICTIONS, PREPROCESSING
from exp_tools.revisions import WORKSPACE
from exp_tools.serving.predictor import NO_MAPS, Patient, Predictor, name_of

KIND = "gradcam"
NEAR = 0.02
"""A probability may differ by this much from the table's: another device, or bf16."""
NOTE = (
    "Grad-CAM: where the last features spoke for a class; yellow is most. A hint, not a reason; it is coarse, and each "
    "map has its own scale, so that two of them do not compare in strength."
)


def case_maps(settings: Settings, cases: Cases, case: pd.Series, pixels: NDArray[np.uint8], width: int) -> None:
    """Draw Grad-CAM of the predicted class and, where it is another, of the true one; or say why there is none."""
    try:
        predictor = model_picker.find_predictor(replace(settings, model=None), WORKSPACE)
        _require_fit(predictor, cases, pixels, settings.folder)
    except UserError as error:
        st.info(plain(f"No heat maps: {error}"), width="stretch")
        return
    if KIND not in predictor.explanations:
        st.info(f"Heat maps: {NO_MAPS}.", width="stretch")
        return
    patient = patient_of(case)
    share = predictor.predict_pixels(pixels[None], [patient])[0].probabilities[case["predicted"]]
    targets = {"predicted": case["predicted"]} | ({} if case["right"] else {"true": case["dx"]})
    for role, code in targets.items():
        heat = _map(model_picker.identity(predictor), pixels.tobytes(), patient, code, predictor, pixels)
        drawn = images.png(overlay(pixels, heat))
        name = plain(name_of(code))
        flat = f"; {flat_note(KIND)}" if is_flat(heat[None])[0] else ""
        st.image(
            drawn,
            caption=f"Grad-CAM of the {role} class, {name}{flat}",
            width=width,
            alt=f"{case['image_id']} with Grad-CAM of {name_of(code)} laid over it",
        )
    st.caption(NOTE, width="stretch")
    if abs(share - case["confidence"]) > NEAR and _is_plain(settings.folder):
        st.warning(
            f"{MODEL} now gives the predicted class {percent(share)}, {PREDICTIONS} says "
            f"{percent(case['confidence'])}: they are of different runs. `dvc repro evaluate` predicts again."
        )


def patient_of(case: pd.Series) -> Patient:
    """What the model was told of the patient when the case was predicted."""
    sex, site = (None if case[name] == "unknown" else case[name] for name in ("sex", "localization"))
    return Patient(age=None if pd.isna(case["age"]) else float(case["age"]), sex=sex, localization=site)


def _require_fit(predictor: Predictor, cases: Cases, pixels: NDArray[np.uint8], root: Path) -> None:
    """Check that the model takes these squares and knows the table's classes."""
    facts = predictor.facts
    if facts.classes != cases.classes:
        raise UserError(
            f"{MODEL} has the classes {', '.join(facts.classes)}, {PREDICTIONS} {', '.join(cases.classes)}; "
            "`dvc repro evaluate` predicts again"
        )
    prepared = dict(facts.preprocessing) | {"image_size": pixels.shape[1]}
    if (root / PREPROCESSING).is_file():
        prepared |= json.loads((root / PREPROCESSING).read_text(encoding="utf-8"))
    differs = [name for name, value in facts.preprocessing.items() if prepared[name] != value]
    if differs:
        listed = ", ".join(f"{name} {prepared[name]} here, {facts.preprocessing[name]} there" for name in differs)
        raise UserError(f"the packed images are not prepared as {MODEL} takes them ({listed}); `dvc repro` makes both")


def _is_plain(root: Path) -> bool:
    """Whether the table's predictions are of the images as they are, without test-time augmentation."""
    evaluated = parameters_of(root / PREDICTIONS).get("evaluate") or {}
    return evaluated.get("tta", "none") == "none"


@st.cache_data(max_entries=200, show_spinner="Computing the map …")
def _map(model: tuple, square: bytes, patient: Patient, code: str, _predictor: Predictor, _pixels: NDArray[np.uint8]):
    return _predictor.maps(_pixels, patient, code, [KIND])[KIND]
