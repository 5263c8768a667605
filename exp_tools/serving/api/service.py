"""Handle an accepted API request with one model: check, predict and explain."""

import base64
from dataclasses import asdict
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from exp_tools.data.images.decode import ImageFault
from exp_tools.explain.picture import explained
from exp_tools.io import file_sha256
from exp_tools.serving.api.limits import Limits
from exp_tools.serving.api.problems import Problem, shown
from exp_tools.serving.api.schemas import DRAWN
from exp_tools.serving.predictor import (
    DISCLAIMER,
    NO_MAPS,
    SCOPE,
    Patient,
    Prediction,
    Predictor,
    description_of,
    is_malignant,
    name_of,
)
from exp_tools.taxonomy import is_drawn


class Service:
    """A model's answers; each is ready for JSON, with finite numbers only. Many threads may ask at once."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        facts = predictor.facts
        self.served = {
            "name": predictor.path.name,
            "architecture": facts.architecture,
            "sha256": file_sha256(predictor.path),
            "trained_on": facts.source,
            "warning": DRAWN if is_drawn(facts.source) else None,
        }

    def try_out(self) -> None:
        """Predict a grey square. Raises UserError where the model gives NaN or infinite."""
        size = self.predictor.facts.preprocessing["image_size"]
        grey = np.full((1, size, size, 3), 128, np.uint8)
        self.predictor.predict_pixels(grey, [Patient()])

    def known(self, kinds: list[str]) -> list[str]:
        """The kinds of map wanted, each once. Raises Problem (wrong_value) for one the model has not."""
        has = self.predictor.explanations
        for kind in kinds:
            if kind not in has:
                raise Problem("wrong_value", f"this model has no map {shown(kind)}; it has {', '.join(has) or NO_MAPS}")
        return list(dict.fromkeys(kinds))

    def predict(self, content: bytes, patient: Patient, kinds: list[str]) -> dict[str, Any]:
        """PredictionAnswer for one image. Raises Problem when it cannot be used."""
        self._require_bytes(content)
        try:
            prediction = self.predictor.predict(content, patient, explain=kinds)
        except ImageFault as fault:
            raise Problem(fault.kind, str(fault)) from fault
        overlays = {}
        if prediction.maps:
            resize = self.predictor.facts.preprocessing["resize"]
            overlays = {
                kind: _png(explained(content, resize, heat, kind, prediction.name))
                for kind, heat in prediction.maps.items()
            }
        return _told(prediction, overlays) | {"model": self.served, "notice": SCOPE}

    def predict_batch(self, contents: list[bytes], patients: list[Patient]) -> dict[str, Any]:
        """BatchAnswer for several images; an image's fault takes its place."""
        squares: dict[int, np.ndarray] = {}
        results: list[dict[str, Any]] = []
        for place, content in enumerate(contents):
            results.append({"index": place, "prediction": None, "problem": None})
            try:
                if len(content) > self.limits.image_bytes:
                    raise Problem(
                        "too_large", f"the image has {len(content):,} bytes; {self.limits.image_bytes:,} are taken"
                    )
                squares[place] = self.predictor.prepare(content)
            except ImageFault as fault:
                results[place]["problem"] = Problem(fault.kind, str(fault)).body()
            except Problem as problem:
                results[place]["problem"] = problem.body()
        if squares:
            pixels = np.stack(list(squares.values()))
            predictions = self.predictor.predict_pixels(pixels, [patients[place] for place in squares])
            for place, prediction in zip(squares, predictions, strict=True):
                results[place]["prediction"] = _told(prediction, {})
        return {
            "results": results,
            "predicted": len(squares),
            "refused": len(contents) - len(squares),
            "model": self.served,
            "notice": SCOPE,
            "disclaimer": DISCLAIMER,
        }

    def _require_bytes(self, content: bytes) -> None:
        """Raise Problem (too_large) for an image of too many bytes."""
        if len(content) > (most := self.limits.image_bytes):
            raise Problem("too_large", f"the image has {len(content):,} bytes; at most {most:,} are taken")

    def model_card(self) -> dict[str, Any]:
        """Facts of the model file that reveal nothing about the machine it was trained on."""
        facts, vocabulary = self.predictor.facts, self.predictor.facts.vocabulary
        return self.served | {
            "task": facts.task,
            "classes": [
                {
                    "code": code,
                    "name": name_of(code),
                    "description": description_of(code),
                    "malignant": is_malignant(code),
                }
                for code in facts.classes
            ],
            "preprocessing": facts.preprocessing,
            "calibration": facts.calibration,
            "thresholds": facts.thresholds,
            "prediction_sets": facts.prediction_sets,
            "uses_metadata": self.predictor.uses_metadata,
            "vocabulary": vocabulary and {name: list(vocabulary[name]) for name in ("sex", "localization")},
            "explanations": self.predictor.explanations,
            "validation": facts.training.get("validation", {}),
            "versions": facts.versions,
            "limits": asdict(self.limits),
            "disclaimer": DISCLAIMER,
        }


def _told(prediction: Prediction, overlays: dict[str, str]) -> dict[str, Any]:
    return prediction.as_dict() | {"overlays": overlays}


def _png(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")
