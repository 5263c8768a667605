"""Evaluate a model in a process of its own: `python -m exp_tools.app.parts.evaluation_job FOLDER`.

Reads FOLDER/request.json, writes the results into FOLDER/results/ and how far it is into FOLDER/status.json.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from exp_tools.data.labels.table import read_labels, read_splits
from exp_tools.data.sources.registry import SourceOptions
from exp_tools.errors import UserError, faults_of_the_system
from exp_tools.evaluation.plots.write import PHOTOGRAPHS
from exp_tools.evaluation.report.model_card import model_card
from exp_tools.evaluation.standalone.dataset import ReadySet, TrainingSet, evaluate_standalone
from exp_tools.evaluation.standalone.page import evaluation_page
from exp_tools.io import atomic_write, file_digest, file_sha256, write_json
from exp_tools.models.model_file import ModelFacts, read_facts
from exp_tools.params import PARAMS_FILE, Params, load_params
from exp_tools.project import CARD, EXTERNAL_RAW, LABELS, RAW, SPLITS
from exp_tools.system import io_processes

TEST = "test split"
EXTERNAL = "external set "
OTHER_SPLIT = (
    "The model was trained on other data, or with another split, than the project has now. It may have seen some of "
    "these images, and then its scores are too good."
)
UNCHECKED = "The model's training data are not here: whether this set has some of them was not checked."


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    root, model : the project's folder and the model file
    label : names the model's version
    chosen : TEST, EXTERNAL and the set's name, or a folder
    source, table : of a folder: the kind of data set, and the table's name where it is `table`
    skip : leave out images and rows with problems, where the project's parameters would stop
    stored : the version's own report (metrics/report.json) for the model card, or None
    pictures : keep the figures that show images of the set
    """

    root: str
    model: str
    label: str
    chosen: str
    source: str = ""
    table: str | None = None
    skip: bool = False
    stored: dict[str, Any] | None = None
    pictures: bool = False


def evaluate(request: Request, out: Path, tell: Any) -> None:
    """Evaluate, and write report.json, predictions.csv, problems.csv, figures, report.html and, where the model's own
    test scores are known, MODEL_CARD.md into `out`.

    Raises UserError where the model or the set cannot be read, or nothing of it can be scored.
    """
    root, model = Path(request.root), Path(request.model)
    if model.suffix != ".safetensors":
        raise UserError(f"{model.name} is an export; evaluate the .safetensors that it was made from")
    facts, params = read_facts(model), load_params(root / PARAMS_FILE)
    if request.skip:
        params = _skipping(params)
    source, wanted, ready, notes = _set(request, root, facts, params)
    result = evaluate_standalone(
        model,
        source,
        wanted,
        out,
        params,
        root=root,
        known=TrainingSet(root / RAW, root / LABELS, params.data.source),
        processes=io_processes(params.machine),
        ready=ready,
        figures=True,
        tell=tell,
    )
    for name in () if request.pictures else PHOTOGRAPHS:
        (out / "figures" / f"{name}.png").unlink(missing_ok=True)
    own = ready is not None and ready.labels is not None
    if not own and result.removed is None:
        notes.append(UNCHECKED)
    if result.left_out:
        notes.append(f"Not scored, since the model does not know them: {_counted(result.left_out)}.")
    if sum((result.removed or {}).values()):
        notes.append(f"Removed, since the model's own set has them too: {_counted(result.removed)}.")
    checksum = file_sha256(model)
    title = f"{request.label} on {request.chosen}"
    _write(
        out / "report.html",
        evaluation_page(title, facts, result.report, out / "figures", checksum=checksum, notes=notes),
    )
    reports = _reports(request, result.report, own, own and OTHER_SPLIT not in notes)
    if reports and "epochs_run" in facts.training:
        digests = {model.name: file_digest(model)}
        _write(out / CARD.name, model_card(facts, reports, digests))
    write_json(out / "about.json", {"title": title, "notes": notes, "sha256": checksum})


def _skipping(params: Params) -> Params:
    """The parameters with `skip` for every problem that stops, where it may be skipped."""
    rules = params.prepare.on_problem
    allowed = {name: get_args(field.annotation) for name, field in type(rules).model_fields.items()}
    chosen = {name: "skip" for name, words in allowed.items() if getattr(rules, name) == "stop" and "skip" in words}
    prepare = params.prepare.model_copy(update={"on_problem": rules.model_copy(update=chosen)})
    return params.model_copy(update={"prepare": prepare})


def _set(
    request: Request, root: Path, facts: ModelFacts, params: Params
) -> tuple[str, SourceOptions, ReadySet | None, list[str]]:
    """Source, options and place of the chosen set, and what must be said of it."""
    if request.chosen == TEST and facts.training.get("ensemble_of") == "folds":
        raise UserError(
            f"the members of {request.label} have trained on every image of this project's set, so none is left to "
            "test them together: choose an external set. Its card has the out-of-fold scores"
        )
    if request.chosen == TEST:
        labels, splits = read_labels(root / LABELS), read_splits(root / SPLITS)
        own = {"md5_labels": file_digest(root / LABELS), "md5_splits": file_digest(root / SPLITS)}
        same = all(facts.training.get(name) == digest for name, digest in own.items())
        test = labels[(splits["split"] == "test").to_numpy()]
        return params.data.source, SourceOptions(), ReadySet("test", root / RAW, test), [] if same else [OTHER_SPLIT]
    if request.chosen.startswith(EXTERNAL):
        name = request.chosen.removeprefix(EXTERNAL)
        ready = ReadySet(f"external:{name}", root / EXTERNAL_RAW / name)
        return params.data.external[name].source, SourceOptions(), ready, []
    return request.source, SourceOptions(dir=request.chosen, table=request.table), None, []


def _reports(request: Request, report: dict[str, Any], own: bool, same: bool) -> dict[str, Any] | None:
    """The reports that a model card needs; None where the model's scores on its own test split are not known."""
    stored = request.stored or {"test": {}, "external": {}}
    if own:
        return {"test": (stored["test"] if same else {}) | report, "external": stored["external"]}
    if not stored["test"]:
        return None
    return {"test": stored["test"], "external": stored["external"] | {Path(request.chosen).name: report}}


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def main(folder: Path) -> None:
    """Do the request of a folder; its status ends with `done` or an `error` in words."""
    status = folder / "status.json"
    request = Request(**json.loads((folder / "request.json").read_text(encoding="utf-8")))

    def tell(step: str, share: float) -> None:
        write_json(status, {"state": "running", "step": step, "share": share})

    try:
        tell("starting", 0)
        with faults_of_the_system():
            evaluate(request, folder / "results", tell)
        write_json(status, {"state": "done", "step": "done", "share": 1})
    except UserError as error:
        write_json(status, {"state": "failed", "step": str(error), "share": 0})
    except Exception:
        write_json(
            status, {"state": "failed", "step": "a fault of the program; the server's log says more", "share": 0}
        )
        raise


def save(request: Request, folder: Path) -> None:
    """Put the request where `main` looks for it."""
    write_json(folder / "request.json", asdict(request))


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(10)  # visitors who predict come first
    main(Path(sys.argv[1]))
