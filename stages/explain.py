"""Draw heat maps for predictions on the test split, and test whether the maps can be trusted.

Reads   models/model.safetensors, data/predictions.csv, data/prepared/{labels.csv, images.npy, masks.npy}
Writes  metrics/explain.json, plots/explain/{cases.png, sanity.png}
"""

import sys
from typing import Any

import numpy as np
import pandas as pd
import torch

from exp_tools.data.images.masks import PackedMasks
from exp_tools.data.inputs.dataset import PackedImages
from exp_tools.data.inputs.metadata import Vocabulary, encode
from exp_tools.data.labels.table import read_labels
from exp_tools.devices import prepare_machine
from exp_tools.errors import UserError, run_main
from exp_tools.evaluation.predictions import read_predictions
from exp_tools.explain.cases import choose_cases, choose_of_each
from exp_tools.explain.figures import Case, draw_cases, draw_sanity
from exp_tools.explain.localization import localization_report
from exp_tools.explain.maps import explain_rows, methods_of
from exp_tools.explain.overlay import is_flat
from exp_tools.explain.randomization import randomisation_test
from exp_tools.io import write_json
from exp_tools.models.model_file import ModelFacts
from exp_tools.models.registry import build_model, load_model
from exp_tools.params import load_params
from exp_tools.project import EXPLAIN_FIGURES, EXPLAIN_METRICS, IMAGES, LABELS, MASKS, MODEL, PREDICTIONS

OF_EACH_CLASS = 40
"""Images of a diagnosis, at most, over which the share of the map on the lesion is taken."""
SANITY_IMAGES = 32
COARSE = 5
"""A map with fewer positions per side is too coarse to locate anything."""
DRAWS = 3
"""Sets of random weights of the sanity check."""


def main() -> None:
    params = load_params()
    device = prepare_machine(params.machine)
    model, facts = load_model(MODEL)
    model = model.to(device, memory_format=torch.channels_last)
    labels = read_labels(LABELS)
    test = test_predictions(labels, facts)
    vocabulary = None if facts.vocabulary is None else Vocabulary.from_dict(facts.vocabulary)
    metadata = None if vocabulary is None else encode(labels, vocabulary)
    packed = PackedImages(IMAGES, np.zeros(len(labels)), metadata=metadata)
    methods = methods_of(model, params.explain.method)
    masks, pixels = PackedMasks(MASKS), np.load(IMAGES, mmap_mode="r")

    def maps_of(network: torch.nn.Module, table: pd.DataFrame) -> dict[str, np.ndarray]:
        return explain_rows(network, packed, table["row"].to_numpy(), table["target"].to_numpy(), methods, device)

    cases = choose_cases(test, params.explain.images, facts.classes, params.explain.seed)
    maps = maps_of(model, cases)
    drawn = [as_case(row, place, maps, masks, pixels) for place, row in enumerate(cases.to_dict("records"))]
    size = {method: list(made.shape[1:]) for method, made in maps.items()}
    title = f"{facts.source} test split, maps of {' and '.join(sorted({f'{h}x{w}' for h, w in size.values()}))} places"
    draw_cases(EXPLAIN_FIGURES / "cases.png", drawn, title)

    many = choose_of_each(test, OF_EACH_CLASS, params.explain.seed)
    outlined = many[many["row"].isin(masks.rows)]
    focus = None
    if len(outlined):
        shapes = np.stack([masks.of(row) for row in outlined["row"]])
        focus = localization_report(maps_of(model, outlined), shapes, outlined["dx"].to_list(), facts.classes)

    few = choose_cases(test, SANITY_IMAGES, facts.classes, params.explain.seed)
    torch.manual_seed(params.explain.seed)
    untrained = [build_model(facts.architecture, facts.knobs, len(facts.classes)).to(device) for _ in range(DRAWS)]
    by_step, chance, made = randomisation_test(model, untrained, lambda network: maps_of(network, few))
    draw_sanity(EXPLAIN_FIGURES / "sanity.png", by_step, chance, pixels[few["row"].to_numpy()], made, title)

    sanity = {"images": len(few), "draws": DRAWS, "by_step": by_step, "other_image": chance}
    chosen = cases["image_id"].to_list()
    write_json(EXPLAIN_METRICS, {"map_size": size, "cases": chosen, "sanity": sanity, "focus": focus})
    print(f"{EXPLAIN_METRICS}, {EXPLAIN_FIGURES}/: {summary(by_step, focus)}")
    for method, made in maps.items():
        if flat := int(is_flat(made).sum()):
            said = f"{flat} of {len(made)} {method} maps are the same everywhere: they show no place and get no colours"
            print(f"warning: {said}", file=sys.stderr)
    least = min(side for sides in size.values() for side in sides)
    if least == 1:
        print(
            f"warning: {title}: a map of a single position means nothing, it is the same everywhere; raise "
            "prepare.image_size, or choose a backbone that keeps positions",
            file=sys.stderr,
        )
    elif least < COARSE:
        print(f"warning: {title}: too coarse to say where; raise prepare.image_size for a finer one", file=sys.stderr)


def test_predictions(labels: pd.DataFrame, facts: ModelFacts) -> pd.DataFrame:
    """Predictions of the test split with `row`, the place in images.npy, and `target`, the number of the prediction."""
    table, classes = read_predictions(PREDICTIONS)
    if classes != facts.classes:
        raise UserError(
            f"{PREDICTIONS} is of the classes {', '.join(classes)}, {MODEL} of {', '.join(facts.classes)}: "
            "make them again with `dvc repro evaluate`"
        )
    test = table[table["split"] == "test"].reset_index(drop=True)
    if test.empty:
        raise UserError(f"{PREDICTIONS} holds no image of the test split, so there is nothing to explain")
    place = {image_id: row for row, image_id in enumerate(labels["image_id"])}
    number = {code: target for target, code in enumerate(classes)}
    return test.assign(row=test["image_id"].map(place), target=test["predicted"].map(number))


def as_case(
    row: dict[str, Any], place: int, maps: dict[str, np.ndarray], masks: PackedMasks, pixels: np.ndarray
) -> Case:
    """The figure's content for one chosen row, whose maps are at `place`."""
    return Case(
        image_id=row["image_id"],
        image=np.array(pixels[row["row"]]),
        mask=masks.of(row["row"]),
        maps={method: made[place] for method, made in maps.items()},
        truth=row["dx"],
        predicted=row["predicted"],
        probability=row[f"p_{row['predicted']}"],
        truth_probability=row[f"p_{row['dx']}"],
    )


def summary(by_step: dict[str, Any], focus: dict[str, Any] | None) -> str:
    """The two numbers of each method that a reader wants first."""
    said = []
    for method, steps in by_step.items():
        text = f"{method}: rank correlation {steps[-1]['rank_correlation']:.2f} with an untrained network's maps"
        if focus is not None:
            every = focus[method]["all"]
            text += f", {every['energy']:.0%} on the lesion, which has {every['area']:.0%} of the image"
        said.append(text)
    return "; ".join(said)


if __name__ == "__main__":
    run_main(main)
