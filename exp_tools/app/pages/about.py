"""The About page: the model card, the facts of the model file, the data, and the limits."""

import json

import pandas as pd
import streamlit as st

from exp_tools.app.parts import model_picker
from exp_tools.app.parts.settings import MAX_UPLOAD_MB, Settings
from exp_tools.app.parts.text import plain, without_pictures
from exp_tools.models.model_file import ModelFacts
from exp_tools.project import CARD, DATA_METRICS, RELEASED
from exp_tools.revisions import RELEASED_VERSION, read_files
from exp_tools.serving.predictor import description_of, is_malignant, name_of

PRIVACY = f"""
- **What is uploaded stays in this computer's memory** until the page is closed: no image, name or patient's data is
  written to the disk, logged or sent anywhere, and the app reports no usage.
- Files up to {MAX_UPLOAD_MB} MB each. There is no password: whoever reaches the address can use the app.
- A prediction describes an image, not a patient. The model knows the classes listed under "Model file", nothing else:
  it cannot say "none of these", and a photograph of a cup is given a diagnosis too.
- It has learned from one collection of images. With other cameras, skin tones, ages or body sites it can do much worse;
  the page Evaluate has the figures, where there are any.
"""
WIDE_TABLES = "<style>[data-testid=stMarkdownContainer] table { display: block; overflow-x: auto; }</style>"
"""A table of the model card scrolls by itself where it is wider than the screen."""


def show(settings: Settings) -> None:
    """Draw the page."""
    st.title("About")
    version = model_picker.choose_version(settings)
    predictor = model_picker.open_predictor(settings, version)
    model_picker.say_model(predictor)
    released = version == RELEASED_VERSION
    about = (RELEASED / CARD.name, RELEASED / DATA_METRICS.name) if released else (CARD, DATA_METRICS)
    card, data = read_files(settings.folder, [(version.commit, path) for path in about])
    model, limits, facts, numbers = st.tabs(["Model card", "Limits and privacy", "Model file", "Data"])
    with model:
        if settings.model is not None:
            st.info("The app was started with a model file of its own; the project's model card is not about it.")
        elif card is None:
            st.info(f"{plain(version.label)} has no {CARD}: make it with `dvc repro evaluate`.")
        else:
            st.html(WIDE_TABLES)
            st.markdown(without_pictures(card))
    with limits:
        st.markdown(PRIVACY)
    with facts:
        _model_file(predictor.facts)
    with numbers:
        if data is None or settings.model is not None:
            st.info("Nothing is known of the data beyond their name: " + plain(predictor.facts.source))
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
    best = facts.training["best_epoch"]
    scores = ", ".join(f"{name} {value:.3f}" for name, value in facts.training.get("validation", {}).items())
    st.markdown(
        f"- architecture **{plain(facts.architecture)}**: "
        + ", ".join(plain(f"{name} {value}") for name, value in facts.knobs.items())
        + f"\n- input {facts.input}; temperature {facts.calibration['temperature']:.3f}"
        + f"\n- trained on {plain(facts.source)}; best {facts.chosen_among} {best}; on validation: "
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
