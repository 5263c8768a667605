"""The About page: the model card, the facts of the model file, the data, and the limits."""

import json
import re

import pandas as pd
import streamlit as st

from exp_tools.app.parts import frame, model_picker
from exp_tools.app.parts.settings import MAX_UPLOAD_MB, Settings
from exp_tools.app.parts.text import plain, without_pictures
from exp_tools.models.model_file import ModelFacts
from exp_tools.project import CARD, DATA_METRICS, RELEASED
from exp_tools.revisions import RELEASED_VERSION, read_files
from exp_tools.serving.predictor import description_of, is_malignant, name_of

PURPOSE = "What the chosen model is, what it was trained on, and what it cannot do."
PRIVACY = f"""
- **What you upload is sent to the computer that runs this app**: your own where the address is 127.0.0.1 or localhost,
  otherwise somebody else's, who can read it there. Unless the address begins with https, others can read it on the
  way too. Remove names and other personal data first, and ask whoever runs the app before you upload a patient's image.
- The app keeps it in that computer's memory until the page is closed. It writes no image, name or patient's data to
  the disk, logs none of them, sends them nowhere else and reports no usage.
- Files up to {MAX_UPLOAD_MB} MB each. The app has no password of its own: whoever reaches the address can use it.
- A prediction describes an image, not a patient. The model knows the classes listed under "Model file", nothing else:
  a photograph of a cup is given a diagnosis too. Most such images are flagged where the model file can detect them.
- It has learned from one collection of images. With other cameras, skin tones, ages or body sites it can do much worse;
  the page Evaluate has the figures, where there are any.
"""
EMPTY_CORNER = re.compile(r"^\| +\|(?=.*\n\|[-:| ]+\|$)", re.MULTILINE)
"""The first cell of a table's head, where it is empty: screen readers have nothing to say for it."""


def show(settings: Settings) -> None:
    """Draw the page. Without the model file it shows what Git has: the model card and the facts of the data."""
    frame.head("About", PURPOSE)
    version = model_picker.choose_version(settings)
    found = model_picker.facts_of(settings, version)
    facts = found if isinstance(found, ModelFacts) else None
    model_picker.say_facts(found)
    released = version == RELEASED_VERSION
    about = (RELEASED / CARD.name, RELEASED / DATA_METRICS.name) if released else (CARD, DATA_METRICS)
    card, data = read_files(settings.folder, [(version.commit, path) for path in about])
    model, limits, file, numbers = st.tabs(["Model card", "Limits and privacy", "Model file", "Data"])
    with model:
        if settings.model is not None:
            st.info("The app was started with a model file of its own; the project's model card is not about it.")
        elif card is None:
            st.info(f"{plain(version.label)} has no {CARD}: make it with `dvc repro evaluate`.")
        else:
            st.markdown(without_pictures(EMPTY_CORNER.sub("| true \\ predicted |", card)))
    with limits:
        st.markdown(PRIVACY)
    with file:
        if facts is None:
            st.info(plain(str(found)))
        else:
            _model_file(facts)
    with numbers:
        if data is None or settings.model is not None:
            source = plain(facts.source) if facts else "not recorded"
            st.info(f"Nothing is known of the data beyond their name: {source}.")
        else:
            _data(json.loads(data))


def _model_file(facts: ModelFacts) -> None:
    classes = [
        {
            "code": code,
            "name": name_of(code),
            "what it is": description_of(code),
            "malignant": {True: "yes", False: "no", None: "–"}[is_malignant(code)],
        }
        for code in facts.classes
    ]
    st.dataframe(pd.DataFrame(classes), hide_index=True, alt="The classes of the model")
    scores = ", ".join(f"{name} {value:.3f}" for name, value in facts.training.get("validation", {}).items())
    st.markdown(
        f"- architecture **{plain(facts.architecture)}**: {plain(facts.described)}"
        + f"\n- input {facts.input}; temperature {facts.calibration['temperature']:.3f}"
        + f"\n- trained on {plain(facts.source)}; {facts.chosen}on validation: "
        + (plain(scores) or "not recorded")
        + "\n- metadata: "
        + ("none, the image alone" if facts.vocabulary is None else "age, sex, localization")
        + "\n- libraries: "
        + ", ".join(plain(f"{name} {version}") for name, version in facts.versions.items())
    )


def _data(data: dict) -> None:
    st.markdown(
        f"{data['images']:,} images of {data['lesions']:,} lesions, from "
        + ", ".join(f"{plain(name)} ({count:,})" for name, count in data["source"].items())
        + "."
    )
    rows = [{"class": code, "name": name_of(code), "images": count} for code, count in data["classes"].items()]
    st.dataframe(pd.DataFrame(rows), hide_index=True, alt="Images of each class")
