"""`model.onnx.json`: what a program needs to feed an exported graph and to read its answer, as data."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from exp_tools.evaluation.prediction_sets import FREE_RANKS, PENALTY
from exp_tools.evaluation.probabilities import Calibration
from exp_tools.io import atomic_write, file_sha256
from exp_tools.models.model_file import ModelFacts
from exp_tools.serving.export.whole import Draft
from exp_tools.serving.onnx_engine import OOD_KEY, facts_of
from exp_tools.serving.predictor import DISCLAIMER, is_malignant, name_of

FORMAT = "skin-lesion-onnx 1"
FILTERS = {
    "hair_removal": "black-hat in four directions, then OpenCV's inpainting (remove_hair in preprocess.py)",
    "colour_constancy": "shades of grey, Minkowski norm 6 (shades_of_grey in preprocess.py)",
    "clahe": "CLAHE on L of CIELAB, clip limit 2, 8x8 tiles (equalise in preprocess.py)",
}


def sidecar_of(onnx_file: Path) -> Path:
    """Where the description of an export lies: its name and `.json`."""
    return onnx_file.with_name(onnx_file.name + ".json")


def write_sidecar(onnx_file: Path, draft: Draft | None) -> None:
    """Describe an export in a JSON file next to it.

    Parameters
    ----------
    onnx_file : what `export_onnx`, `export_whole` or `quantise` wrote
    draft : what reduced decoding of JPEGs changes, where it was measured
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    facts = facts_of(session.get_modelmeta().custom_metadata_map, onnx_file)
    tensors = {
        "inputs": {one.name: {"type": one.type, "shape": one.shape} for one in session.get_inputs()},
        "outputs": {one.name: {"type": one.type, "shape": one.shape} for one in session.get_outputs()},
    }
    text = json.dumps(content(facts, onnx_file, tensors, draft), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(
        sidecar_of(onnx_file)
    ) as temporary:  # numbers in full, unlike io.write_json: they are computed with
        temporary.write_text(text + "\n", encoding="utf-8")


def content(facts: ModelFacts, onnx_file: Path, tensors: dict[str, Any], draft: Draft | None) -> dict[str, Any]:
    """The description; `steps_in_graph` names those of its sections that the graph does by itself."""
    whole = "image" in tensors["inputs"]
    size, rule = facts.preprocessing["image_size"], facts.preprocessing["resize"]
    calibration = Calibration.from_dict(facts.calibration)
    return {
        "format": FORMAT,
        "disclaimer": DISCLAIMER,
        "model": {
            "file": onnx_file.name,
            "sha256": file_sha256(onnx_file),
            "architecture": facts.architecture,
            "task": facts.task,
            "trained_on": facts.source,
            "export": facts.training["export"],
        },
        "graph": tensors,
        "steps_in_graph": ["normalise", *(["resize", "probabilities", "decision"] if whole else [])],
        "decode": {
            "frame": "the first of several",
            "exif_orientation": "applied: the picture is turned upright",
            "colour_profile": "converted to sRGB, relative colorimetric, where it is another; none counts as sRGB",
            "sample_depth": "more than 8 bits: scaled to 0..255 and rounded",
            "transparency": "laid on white",
            "channels": "RGB",
            "layout": "height, width, channel; uint8",
            "jpeg_draft": {
                "what": "this project decodes a JPEG at the smallest of the scales 1/8, 1/4, 1/2 and 1 (of the DCT; "
                "Image.draft of Pillow) whose width and height are not below `at_least`, before it is turned; other "
                "programs may decode in full",
                "at_least": size if rule != "pad" else "image_size * short side / long side, rounded",
                "difference_from_full_decoding": None if draft is None else draft._asdict(),
            },
        },
        "resize": {
            "image_size": size,
            "rule": rule,
            "crop": "the centre square of the short side, to a fraction of a pixel" if rule == "crop" else None,
            "padding": "whole picture in the middle, sides rounded half to even, black bars" if rule == "pad" else None,
            "filter": {"name": "bicubic", "a": -0.5, "antialias": True},
            "order": "across, then down, each rounded to 8 bits; down first where rows are lost, and more than twice "
            "the columns that are (Image.resize of Pillow 13)",
        },
        "filters": [
            {"name": name, "how": how, "library": "OpenCV"}
            for name, how in FILTERS.items()
            if facts.preprocessing.get(name)
        ],
        "normalise": {"divide_by": 255, "mean": facts.pixel_mean, "std": facts.pixel_std},
        "metadata": None if facts.vocabulary is None else _metadata(facts.vocabulary),
        "probabilities": {
            "formula": "softmax(logits / temperature + bias)",
            "temperature": calibration.temperature,
            "bias": calibration.bias,
        },
        "decision": {
            "formula": "the class of least sum over true classes of probability * costs[true][class]; of equals the "
            "most probable",
            "rule": calibration.decide,
            "costs": calibration.costs,
            "weights": _weights(calibration),
        },
        "thresholds": facts.thresholds,
        "prediction_sets": set_description(facts.prediction_sets),
        "unlike_training": {
            "told": bool(facts.ood),
            "how": f"output `features`, and the metadata {OOD_KEY}: ForeignJudge in exp_tools/ood/judge.py"
            if facts.ood
            else "missing here: this export has no detector of out-of-distribution images",
        }
        | facts.ood,
        "classes": [{"code": code, "name": name_of(code), "malignant": is_malignant(code)} for code in facts.classes],
    }


def set_description(sets: dict[str, Any]) -> dict[str, Any] | None:
    """How to make the prediction set of the probabilities; None where the model file has no sets."""
    if not sets:
        return None
    before = "the sum of the probabilities that are larger, and half of its own"
    how = {
        "lac": "1 - probability",
        "aps": f"{before}; of equals the first class is the larger",
        "raps": f"{before}; of equals the first class is the larger; and {PENALTY} * max(0, rank - {FREE_RANKS}), rank "
        "1 being the most probable",
    }
    return {
        "formula": "the set holds each class whose score is at most its threshold; a threshold of null: every set",
        "score_of_a_class": how[sets["score"]],
        "promise": "of new lesions of each class like those of validation, this share have it in the set of a picture "
        "of theirs; on average over validation sets, and of no other kind of pictures",
    } | sets


def _weights(calibration: Calibration) -> list[float] | None:
    """The weights w by which the decision is the class of the largest w * p, where the costs can be written so."""
    costs = np.array(calibration.costs)
    weights = costs.max(axis=1)
    same = np.allclose(costs, weights[:, None] * (1 - np.eye(len(costs))), rtol=1e-6, atol=0)
    return weights.tolist() if same else None


def _metadata(vocabulary: dict[str, Any]) -> dict[str, Any]:
    return {
        "order": ["age", "sex", "localization"],
        "age": "(years - age_mean) / age_std; age_median for an unknown age",
        "sex": "place in the list; of `unknown`, else the list's length, for any other word",
        "localization": "as sex",
        "vocabulary": vocabulary,
    }
