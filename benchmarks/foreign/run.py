"""How many foreign pictures a model file flags, by kind: `python -m benchmarks.foreign.run MODEL --project FOLDER`.

    python -m benchmarks.foreign.run models/released/lite0.safetensors --project . --out results/foreign.csv
    python -m benchmarks.foreign.run models/network.safetensors --project . --choose

The project's folder holds the real lesions, data/prepared and data/splits.csv; the pictures are made in memory (needs
scikit-image, imgaug, mahotas and ultralytics for their photographs: pip install --no-deps, in an environment of its
own). Half of the kinds chose the method (`--choose` compares candidates on them), the other half reports.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.neighbors import NearestNeighbors

from benchmarks.foreign.material import Kind, kinds, pictures
from exp_tools.data.images.decode import load_image
from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.errors import run_main
from exp_tools.evaluation.unlike import flagged_share
from exp_tools.io import write_csv
from exp_tools.models.backbone import Backbone
from exp_tools.models.model_file import read_facts, read_ood
from exp_tools.models.normalize import network_inputs
from exp_tools.models.registry import load_model
from exp_tools.ood.checks import lesion_weights, weighted_quantile
from exp_tools.ood.features import FeatureTap
from exp_tools.ood.judge import ForeignJudge
from exp_tools.ood.scores import METHODS, fit_score, score
from exp_tools.project import IMAGES, LABELS, SPLITS
from exp_tools.taxonomy import task_label

SEED = 0
BATCH = 64


class Seen(dict):
    """`middle` and `last` features and `logits` of some squares, and the squares."""


def look(model: torch.nn.Module, squares: Sequence[np.ndarray]) -> Seen:
    """Run the network over squares, uint8 [N, S, S, 3]."""
    tap, last, found = FeatureTap(model), [], {"middle": [], "last": [], "logits": []}
    head = getattr(model, "classifier", None) or next(
        m for m in reversed(list(model.modules())) if hasattr(m, "weight")
    )
    handle = head.register_forward_pre_hook(lambda _, given: last.append(given[0]))
    with torch.inference_mode():
        for start in range(0, len(squares), BATCH):
            some = torch.from_numpy(np.stack(squares[start : start + BATCH]))
            logits = model(*network_inputs(model, some, torch.zeros(len(some), 3), torch.device("cpu")))
            for name, value in (("middle", tap.take()), ("last", last.pop()), ("logits", logits)):
                found[name].append(value.float().numpy())
    handle.remove()
    tap.remove()
    return Seen({name: np.concatenate(parts) for name, parts in found.items()} | {"squares": squares})


def candidates(real: Seen, train: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, callable]:
    """Scores fitted on train, by name: each a function of what `look` gives."""
    found = {"energy of the logits": lambda seen: -np.logaddexp.reduce(seen["logits"], axis=1)}
    for place, words in (("last", "last features"), ("middle", "middle stages")):
        for method in METHODS:
            tensors = fit_score(method, real[place][train], labels, weights)
            found[f"{method}, {words}"] = lambda seen, m=method, t=tensors, p=place: score(m, t, seen[p])
        unit = real[place][train] / np.linalg.norm(real[place][train], axis=1, keepdims=True)
        near = NearestNeighbors(n_neighbors=5).fit(unit)
        found[f"5th of all neighbours, {words}"] = lambda seen, n=near, p=place: n.kneighbors(
            seen[p] / np.linalg.norm(seen[p], axis=1, keepdims=True)
        )[0][:, -1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a model file; with --choose it needs no foreign score")
    parser.add_argument("--project", type=Path, default=Path("."), help="folder with data/prepared and data/splits.csv")
    parser.add_argument("--out", type=Path, help="table to write")
    parser.add_argument("--choose", action="store_true", help="compare scores on the kinds that choose")
    options = parser.parse_args()
    model, facts = load_model(options.model)
    assert any(isinstance(part, Backbone) for part in model.modules())
    labels = read_labels(options.project / LABELS)
    split = read_splits(options.project / SPLITS)["split"].to_numpy()
    rows = {name: np.flatnonzero(split == name) for name in ("train", "val", "test")}
    images = np.load(options.project / IMAGES, mmap_mode="r")
    lesions = labels["lesion_id"].to_numpy()
    preprocessing = Preprocessing(**facts.preprocessing)
    material = {one: [load_image(picture, preprocessing) for picture in pictures(one, SEED)] for one in kinds()}
    foreign = {one: look(model, squares) for one, squares in material.items()}
    if options.choose:
        real = look(model, images)
        codes = np.array([facts.classes.index(task_label(facts.task, code)) for code in labels["dx"]])
        weights = lesion_weights(lesions[rows["train"]])
        table = []
        for name, of in candidates(real, rows["train"], codes[rows["train"]], weights).items():
            scores = of(real)
            row = {"score": name}
            for share in (0.95, 0.98):
                limit = weighted_quantile(scores[rows["val"]], lesion_weights(lesions[rows["val"]]), share)
                row[f"flagged at {share}"] = np.mean(
                    [(of(seen) > limit).mean() for kind, seen in foreign.items() if kind.chooses]
                )
            table.append(row)
        found = pd.DataFrame(table).round(3)
    else:
        assert read_facts(options.model).ood, "this model file tells no foreign pictures"
        judge = ForeignJudge(facts.ood, read_ood(options.model))
        real = look(model, images[rows["test"]])
        judged = judge.judge(real["squares"], real["middle"])
        own = flagged_share(judged.flagged, labels["group_id"].to_numpy()[rows["test"]])
        found = table_of(judge, foreign, judged.scores, judged.flagged)
        print(
            f"real test images flagged, by group: {own['flagged']:.4f} ({own['low']:.4f} to {own['high']:.4f}) of "
            f"{own['lesions']:,} groups; by image {judged.flagged.mean():.4f}"
        )
        for chooses in (True, False):
            half = found[found["chooses"] == chooses]
            print(
                f"half that {'chooses' if chooses else 'reports'}: {half['pictures'].sum()} pictures of {len(half)} "
                f"kinds, "
                f"flagged {half['flagged'].mean():.4f} by kind; FPR95 {half['fpr95'].mean():.4f}; "
                f"photographs and scans {half.loc[half['group'] == 'photograph', 'pictures'].sum()} pictures"
            )
            print(half.groupby("group")["flagged"].mean().round(4).to_dict())
    print(found.to_string(index=False))
    if options.out:
        write_csv(options.out, found)


def table_of(
    judge: ForeignJudge, foreign: dict[Kind, Seen], real: np.ndarray, real_flagged: np.ndarray
) -> pd.DataFrame:
    """A row per kind: pictures, originals, share flagged, share flagged by the checks alone, FPR95 of the score.

    FPR95: the share of foreign pictures that pass where 95 % of the real test images pass.
    """
    limit = np.quantile(real, 0.95)
    rows = []
    for kind, seen in foreign.items():
        judged = judge.judge(seen["squares"], seen["middle"])
        near = judged.scores <= 1
        rows.append(
            {
                "kind": kind.name,
                "group": kind.group,
                "chooses": kind.chooses,
                "pictures": len(judged.flagged),
                "originals": kind.originals,
                "flagged": judged.flagged.mean(),
                "by_checks_alone": (judged.flagged & near).mean(),
                "fpr95": (judged.scores <= limit).mean(),
            }
        )
    return pd.DataFrame(rows).round(4)


if __name__ == "__main__":
    run_main(main)
