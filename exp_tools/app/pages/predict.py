"""The Predict page: images in, probabilities, maps and files out. Uploads are never written to disk."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import streamlit as st

from exp_tools.app.parts import images, model_picker
from exp_tools.app.parts.charts import percent, probability_bars
from exp_tools.app.parts.settings import MAX_UPLOAD_MB, Settings
from exp_tools.app.parts.text import plain
from exp_tools.data.images.formats import READ
from exp_tools.errors import UserError
from exp_tools.explain.overlay import NAMES, is_flat
from exp_tools.explain.picture import explained, flat_note, own_size
from exp_tools.io import guard_cells
from exp_tools.models.model_file import ModelFacts
from exp_tools.serving.predictor import NO_MAPS, OLDEST, SCOPE, UNLIKE, Patient, Prediction, Predictor
from exp_tools.serving.set_words import NO_SETS
from exp_tools.taxonomy import is_drawn

MOST = 50
PURPOSE = (
    "Give the page a dermoscopic image of a skin lesion: a trained model answers with the probability of each "
    "diagnosis it knows, and shows where in the image it looked."
)
MAP_NOTES = {
    "gradcam": "Grad-CAM: where the last features spoke for the diagnosis. A hint, not a reason; it is coarse.",
    "attention": "Attention: where the network weights its features, the same for every class. A hint, not a reason.",
}


@dataclass(frozen=True)
class Picture:
    """An image that somebody gave: a key that is its own, the file's name, its bytes."""

    key: str
    name: str
    data: bytes


def show(settings: Settings) -> None:
    """Draw the page: the result first, below it what was asked for."""
    st.title("Predict", anchor=False)
    result_place, images_place = st.container(), st.container()
    version = model_picker.choose_version(settings)
    predictor = model_picker.open_predictor(settings, version)
    model_picker.say_model(predictor)
    with images_place:
        given = _ask_pictures(predictor.facts)
        patient = _ask_patient(predictor.facts)
    with result_place:
        if not given:
            st.markdown(PURPOSE)
            return
        results = _predict_all(predictor, given, patient)
        chosen = _overview(given, results, version.label, predictor) if len(given) > 1 else given[0]
        result = results[chosen.key]
        if isinstance(result, str):
            st.error(plain(f"{chosen.name}: {result}"), icon=":material/broken_image:")
            return
        _details(predictor, chosen, patient, result, version.label)


def _ask_pictures(facts: ModelFacts) -> list[Picture]:
    files = st.file_uploader(
        f"Dermoscopic images ({READ}; up to {MAX_UPLOAD_MB} MB each)",  # any name: the content decides
        accept_multiple_files=True,
        key="files",
    )
    given = [Picture(file.file_id, file.name, file.getvalue()) for file in files]
    if is_drawn(facts.source):
        count = st.session_state.setdefault("examples", 0)
        if st.button("Draw an unseen example", icon=":material/draw:"):
            count += 1
            st.session_state["examples"] = count
        if count:
            given.append(Picture(f"example {count}", *images.draw_example(count - 1)))
    if len(given) > MOST:
        st.warning(f"The first {MOST} of {len(given)} images are shown; for more use `exp-tools batch`.")
    return given[:MOST]


def _ask_patient(facts: ModelFacts) -> Patient:
    if facts.vocabulary is None:
        st.caption("This model looks at the image alone: it takes no age, sex or body site.")
        return Patient()
    with st.expander("About the patient (this model uses it; leave empty what is unknown)", expanded=True):
        columns = st.columns(3)
        age = columns[0].number_input("Age in years", 0, OLDEST, value=None, step=1, placeholder="unknown")
        words = {
            name: column.selectbox(label, facts.vocabulary[name], index=None, placeholder="unknown")
            for name, label, column in zip(("sex", "localization"), ("Sex", "Site"), columns[1:], strict=True)
        }
    return Patient(age=age, **words)


def _predict_all(predictor: Predictor, given: list[Picture], patient: Patient) -> dict[str, Prediction | str]:
    """A prediction or an error for each picture; this visitor's earlier results are reused."""
    kept: dict = st.session_state.setdefault("predictions", {})
    wanted = {picture.key: (picture.key, model_picker.identity(predictor), patient) for picture in given}
    for stale in kept.keys() - set(wanted.values()):
        del kept[stale]
    missing = [picture for picture in given if wanted[picture.key] not in kept]
    bar = st.progress(0.0, "Predicting …") if len(missing) > 3 else None
    for done, picture in enumerate(missing, start=1):
        try:
            kept[wanted[picture.key]] = predictor.predict(picture.data, patient)
        except UserError as error:
            kept[wanted[picture.key]] = str(error)
        if bar:
            bar.progress(done / len(missing), f"{done} of {len(missing)}")
    if bar:
        bar.empty()
    return {key: kept[place] for key, place in wanted.items()}


def _overview(given: list[Picture], results: dict[str, Prediction | str], label: str, predictor: Predictor) -> Picture:
    """The table of all pictures with its download; the picture that is looked at closely."""
    rows = [_row(picture.name, results[picture.key]) for picture in given]
    table = pd.DataFrame(rows)
    st.header(f"{len(given)} images", anchor=False)
    st.dataframe(
        table[["file", "result", "probability", "melanoma flag", "too uncertain", "unlike training"]],
        hide_index=True,
        placeholder="–",
        column_config={"probability": st.column_config.ProgressColumn(format="percent", min_value=0, max_value=1)},
        alt="File, diagnosis, its probability and flags of each image",
    )
    st.download_button(
        "Download all as CSV",
        guard_cells(table.assign(model=label, sha256=model_picker.checksum(predictor))).to_csv(index=False),
        "predictions.csv",
        "text/csv",
        on_click="ignore",
        icon=":material/download:",
    )
    place = st.selectbox("Look closely at", range(len(given)), format_func=lambda place: given[place].name)
    return given[place]


def _row(name: str, result: Prediction | str) -> dict:
    if isinstance(result, str):
        return {"file": name, "result": f"not read: {result}", "probability": None} | dict.fromkeys(
            ("melanoma flag", "too uncertain", "unlike training")
        )
    words = {True: "yes", False: "no", None: "–"}
    return {
        "file": name,
        "result": result.name,
        "probability": result.probability,
        "melanoma flag": words[result.melanoma],
        "too uncertain": words[result.abstain],
        "unlike training": words[result.unlike_training],
        "diagnosis": result.diagnosis,
        "entropy": result.entropy,
        "prediction_set": None if result.prediction_set is None else " ".join(result.prediction_set),
        "unlike_score": result.unlike_score,
        "unlike_why": result.unlike_why,
        **{f"p_{code}": share for code, share in result.probabilities.items()},
    }


def _details(predictor: Predictor, picture: Picture, patient: Patient, result: Prediction, label: str) -> None:
    left, right = st.columns([6, 5], gap="medium")
    with left:
        st.header(f"{plain(result.name)}: {percent(result.probability)}", anchor=False)
        _say_unlike(result)
        st.caption(SCOPE)
        _say_flags(result, predictor.facts)
        st.markdown(f"Prediction set: {plain(result.set_note or NO_SETS)}.")
        st.html(probability_bars(result))
        if result.description:
            st.caption(f"{plain(result.name)}: {result.description}.")
        st.caption(f"Uncertainty (entropy): {percent(result.entropy)} of the highest possible.")
        for note in result.notes:
            st.caption(f"Note: {plain(note)}.")
    with right:
        overlaid = _show_picture(predictor, picture, patient, result)
    with left, st.container(horizontal=True):
        st.download_button(
            "Download result (JSON)",
            json.dumps(_record(predictor, picture, patient, result, label), indent=2, ensure_ascii=False),
            "prediction.json",
            "application/json",
            on_click="ignore",
            icon=":material/download:",
        )
        st.download_button(
            "Download picture (PNG)",
            overlaid,
            "picture.png",
            "image/png",
            on_click="ignore",
            icon=":material/image:",
        )


def _record(predictor: Predictor, picture: Picture, patient: Patient, result: Prediction, label: str) -> dict[str, Any]:
    """The result as a file: what was asked, of which model, and the answer."""
    model = {
        "name": label,
        "architecture": predictor.facts.architecture,
        "sha256": model_picker.checksum(predictor),
        "trained_on": predictor.facts.source,
    }
    asked = {"file": picture.name, "model": model, "patient": asdict(patient)}
    return asked | result.as_dict() | {"scope": SCOPE}


def _show_picture(predictor: Predictor, picture: Picture, patient: Patient, result: Prediction) -> bytes:
    """Draw the picture with the chosen map; returns the shown picture as PNG."""
    resize, kinds = predictor.facts.preprocessing["resize"], predictor.explanations
    kind, strength, place = None, 0.0, st.empty()
    if kinds:
        kind = st.segmented_control(
            "Where the model looked",
            ["none", *kinds],
            default=kinds[0],
            required=True,
            format_func=lambda kind: f"{NAMES[kind][:1].upper()}{NAMES[kind][1:]}" if kind in NAMES else "Image alone",
            key="kind",
        )
        kind = None if kind == "none" else kind
        strength = st.slider(
            "Strength of the overlay", 0, 100, 60, 5, format="%d %%", key="strength", disabled=not kind
        )
    heat = _map(predictor, picture, patient, kind) if kind else None
    drawn = images.png(
        own_size(picture.data, resize)
        if heat is None
        else explained(picture.data, resize, heat, kind, result.name, strength / 100)
    )
    seen = f"{picture.name}, with {NAMES[kind]} laid over it" if kind else picture.name
    place.image(drawn, caption=plain(picture.name), width="stretch", alt=seen)
    if not kinds:
        st.caption(f"Heat maps: {NO_MAPS}.")
    elif heat is not None:
        st.caption(f"{flat_note(kind)}." if is_flat(heat[None])[0] else MAP_NOTES[kind])
    return drawn


def _map(predictor: Predictor, picture: Picture, patient: Patient, kind: str):
    kept: dict = st.session_state.setdefault("maps", {})
    place = (picture.key, model_picker.identity(predictor), patient, kind)
    if place not in kept:
        if len(kept) >= MOST:
            kept.clear()
        kept[place] = predictor.predict(picture.data, patient, explain=[kind]).maps[kind]
    return kept[place]


def _aim(facts: ModelFacts) -> float:
    """The sensitivity that the threshold promises: less than was asked for where validation has few melanomas."""
    return facts.thresholds.get("melanoma_promised") or facts.thresholds["melanoma_sensitivity"]


def _say_unlike(result: Prediction) -> None:
    """Warn of an image that is out of distribution, or say that this cannot be detected; the bars stay below."""
    if result.unlike_training:
        st.warning(f"{UNLIKE.format(why=plain(result.unlike_why))}.", icon=":material/image_not_supported:")
    elif result.unlike_training is None:
        st.info(f"Note: {plain(result.unlike_why)}.", icon=":material/info:")


def _say_flags(result: Prediction, facts: ModelFacts) -> None:
    if result.melanoma:
        threshold, aim = facts.thresholds["melanoma"], _aim(facts)
        st.error(
            f"Flagged for melanoma: its probability, {percent(result.melanoma_probability)}, reaches the model's "
            f"threshold of {percent(threshold)}, chosen on validation to find {percent(aim)} of melanomas.",
            icon=":material/flag:",
        )
    if result.abstain:
        st.warning(
            f"Too uncertain: below the confidence of {percent(facts.thresholds['abstain'])} under which this model "
            "leaves an image to a human.",
            icon=":material/help:",
        )
    if result.melanoma is None and result.melanoma_probability is not None:
        st.caption("This model file holds no melanoma threshold, so nothing is flagged.")
