"""Commands that use a trained model: predict images, serve a page or an API, export."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from exp_tools.cli.groups import Commands
from exp_tools.cli.outputs import holds, is_drawn_by_us, is_table, may_write
from exp_tools.errors import UserError
from exp_tools.models.released import model_path
from exp_tools.project import IMAGES, LABELS, MODEL, RAW, RELEASED, SPLITS, find_project
from exp_tools.system import cores, wait_passively
from exp_tools.taxonomy import is_drawn

if TYPE_CHECKING:
    from exp_tools.models.model_file import ModelFacts
    from exp_tools.serving.batch import Outcome
    from exp_tools.serving.predictor import Prediction

GROUP = "use a trained model"
UNKNOWN = "unknown"
BAR = 24
SHOWN = 10
WHICH_MODEL = f"model file, its .onnx, or `released`: the one in {RELEASED} (default: {MODEL})"
PUBLIC_URL = "address under which a proxy offers it, as https://example.org/lesions (default: none)"
ENDINGS = {"onnx": ".onnx", "onnx-int8": ".int8.onnx", "half": ".half.safetensors"}
"""Formats of `export`, and how their files end."""
WHOLE = ".pictures.onnx"
"""How an export with its preprocessing ends."""
PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst", ".xlsx")
"""Endings by which a reader takes a table for what `batch` does not write."""
BATCH_COLUMNS = ("image_id", "split", "predicted", "abstain", "melanoma", "file")
"""Columns that tell a table of `batch` from any other."""


def add_commands(commands: Commands) -> None:
    """Add this group's commands."""
    predict = commands.add(
        GROUP,
        "predict",
        _predict,
        "predict one image",
        "exp-tools predict lesion.jpg --age 45 --sex female --explain map.png",
    )
    predict.add_argument("image", type=Path, help="image file")
    predict.add_argument("--model", type=model_path, default=MODEL, help=WHICH_MODEL)
    predict.add_argument("--age", type=float, help="age of the patient in years")
    predict.add_argument("--sex", choices=("female", "male", UNKNOWN), help="sex of the patient")
    predict.add_argument("--localization", help="where on the body, in the words of the training data: back, face, …")
    predict.add_argument("--explain", type=Path, metavar="PNG", help="write where the model looked, over the image")
    predict.add_argument("--method", choices=("gradcam", "attention"), default="gradcam", help="the map for --explain")
    predict.add_argument("--json", action="store_true", help="print JSON, for programs")

    batch = commands.add(
        GROUP,
        "batch",
        _batch,
        "predict the images of a folder or a table; resumes where it was stopped",
        "exp-tools batch ~/images --out predictions.csv",
    )
    batch.add_argument("source", type=Path, help="a folder, or a table with image_id and, where known, dx, age, sex, …")
    batch.add_argument("--images", type=Path, help="folder of the table's images (default: the table's folder)")
    batch.add_argument("--model", type=model_path, default=MODEL, help=WHICH_MODEL)
    batch.add_argument(
        "--out", type=Path, default=Path("predictions.csv"), help="table to write (default: predictions.csv)"
    )
    batch.add_argument(
        "--format", choices=("table", "isic"), default="table", help="isic: a submission to the ISIC challenge"
    )
    batch.add_argument("--batch-size", type=int, default=32, help="images per forward pass (default: 32)")

    app = commands.add(
        GROUP, "app", _app, "start the web app: predict, evaluate, look at experiments", "exp-tools app --port 8501"
    )
    app.add_argument("--model", type=model_path, help="model file to show (default: the project's, to choose from)")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    app.add_argument("--port", type=int, default=8501, help="port to listen on, 0: any free one (default: 8501)")
    app.add_argument("--public-url", metavar="URL", help=PUBLIC_URL)
    app.add_argument("--allow-training", action="store_true", help="let the page queue and run experiments")
    app.add_argument(
        "--cases",
        action="store_true",
        help="show the test images to all who reach the app (without: where only this machine does)",
    )
    app.add_argument(
        "--data-root",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of data sets that the page may evaluate and train on; may be given several times",
    )

    api = commands.add(GROUP, "api", _api, "serve a trained model as a JSON API", "exp-tools api --port 8000")
    api.add_argument("--model", type=model_path, default=MODEL, help=WHICH_MODEL)
    api.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    api.add_argument("--port", type=int, default=8000, help="port to listen on, 0: any free one (default: 8000)")
    api.add_argument("--public-url", metavar="URL", help=PUBLIC_URL)
    api.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose web pages may use the API, *: any; may be given several times (default: none)",
    )
    api.add_argument("--token-file", type=Path, help="file with the token that clients must send (default: none)")
    api.add_argument("--metrics", action="store_true", help="answer /metrics, for Prometheus")
    api.add_argument("--at-once", type=int, help="requests computed at the same time (default: one per core)")

    export = commands.add(
        GROUP,
        "export",
        _export,
        "write a trained model as ONNX, or in half its size, checked on real images",
        "exp-tools export --format onnx-int8",
    )
    export.add_argument(
        "--format",
        choices=tuple(ENDINGS),
        default="onnx",
        help="ONNX in 32 bits (default) or 8; half: the model file in 16",
    )
    export.add_argument(
        "--with-preprocessing",
        action="store_true",
        help="a graph that takes whole images and gives probabilities and decision, for other programs",
    )
    export.add_argument("--model", type=Path, default=MODEL, help=f"model file (default: {MODEL})")
    export.add_argument("--out", type=Path, help="file to write (default: next to the model)")
    export.add_argument("--images", type=Path, help="images to check on (default: the project's test images)")


def _predict(options: argparse.Namespace) -> int:
    wait_passively()
    import torch

    from exp_tools.data.images.decode import ImageFault
    from exp_tools.explain.picture import explained
    from exp_tools.io import file_sha256, write_png
    from exp_tools.serving.predictor import SCOPE, Patient, Predictor

    if options.explain:
        may_write(options.explain, is_drawn_by_us, inputs=(options.image, options.model))
    torch.set_num_threads(cores())
    predictor = Predictor(options.model)
    sex, localization = (None if word in ("", UNKNOWN) else word for word in (options.sex, options.localization))
    patient = Patient(options.age, sex, localization)
    try:
        prediction = predictor.predict(options.image, patient, explain=[options.method] if options.explain else [])
    except ImageFault as fault:
        raise UserError(f"{options.image}: {fault}") from fault
    if options.explain:
        heat, resize = prediction.maps[options.method], predictor.facts.preprocessing["resize"]
        write_png(options.explain, explained(options.image, resize, heat, options.method, prediction.name))
    if options.json:
        facts = predictor.facts
        model = {"name": str(options.model), "architecture": facts.architecture, "sha256": file_sha256(options.model)}
        model["trained_on"] = facts.source
        print(
            json.dumps(
                prediction.as_dict() | {"scope": SCOPE, "model": model}, indent=2, ensure_ascii=False, allow_nan=False
            )
        )
        return 0
    print(prediction_text(prediction, predictor.facts))
    print(model_line(options.model, predictor.facts))
    return 0


def _batch(options: argparse.Namespace) -> int:
    wait_passively()
    from exp_tools.data.labels.issues import REPORT_COLUMNS
    from exp_tools.devices import prepare_machine
    from exp_tools.evaluation.report.text import summary_text
    from exp_tools.params import MachineParams
    from exp_tools.serving.batch import predict_batch, problems_file
    from exp_tools.serving.batch_inputs import batch_inputs
    from exp_tools.serving.predictor import Predictor
    from exp_tools.serving.submission import is_submission

    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; it must be 1 or more")
    if options.out.suffix.lower() in PACKED:
        raise UserError(f"--out is {options.out}; the table is plain text: name a file that ends with .csv")
    is_own, inputs = is_table(*BATCH_COLUMNS), (options.source, options.model)
    may_write(options.out, lambda path: is_own(path) or is_submission(path), inputs=inputs)
    may_write(problems_file(options.out), is_table(*REPORT_COLUMNS), inputs=inputs)
    automatic = dict.fromkeys(("workers", "threads", "decoders", "device", "augment_on"), "auto")
    device = prepare_machine(MachineParams(**automatic, processes=1, checkpoint_steps=None))
    work = batch_inputs(options.source, options.images)
    predictor = Predictor(options.model, device=device)
    how = {"batch_size": options.batch_size, "threads": cores(), "isic": options.format == "isic"}
    outcome = predict_batch(predictor, work, options.out, **how)
    if outcome.report:
        print(summary_text(outcome.report))
    print(model_line(options.model, predictor.facts))
    print(outcome_text(outcome, options.out))
    return 0


def _app(options: argparse.Namespace) -> int:
    wait_passively()
    from exp_tools.app.launch import start
    from exp_tools.app.parts.settings import Settings
    from exp_tools.serving.public_url import is_local

    settings = Settings(
        root=str(find_project(Path.cwd())),
        model=None if options.model is None else str(options.model.resolve()),
        allow_training=options.allow_training,
        data_roots=tuple(str(_folder(root)) for root in options.data_root),
        cases=options.cases or (is_local(options.host) and options.public_url is None),
    )
    start(settings, host=options.host, port=options.port, public_url=options.public_url)
    return 0


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UserError(f"--data-root {path}: there is no such folder")
    return path.resolve()


def _api(options: argparse.Namespace) -> int:
    wait_passively()
    try:
        from exp_tools.serving.api.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
            raise
        raise UserError(f"the API needs {error.name}, which is not installed: pip install -e '.[app]'") from error

    if options.at_once is not None and options.at_once < 1:
        raise UserError(f"--at-once is {options.at_once}; it must be 1 or more")
    serve(
        options.model,
        host=options.host,
        port=options.port,
        at_once=options.at_once,
        public_url=options.public_url,
        cors_origins=options.cors_origin,
        token_file=options.token_file,
        metrics=options.metrics,
    )
    return 0


def _export(options: argparse.Namespace) -> int:
    from exp_tools.models.model_file import HEADER_KEY, is_export
    from exp_tools.serving.export.run import PreparedData, export_model
    from exp_tools.serving.export.sidecar import FORMAT, sidecar_of

    root = find_project(Path.cwd())
    data = PreparedData(root / LABELS, root / SPLITS, root / IMAGES, root / RAW)
    ending = WHOLE if options.with_preprocessing and options.format == "onnx" else ENDINGS[options.format]
    out = options.out or options.model.with_suffix(ending)
    may_write(out, is_export if options.format == "half" else holds(HEADER_KEY), inputs=(options.model,))
    if options.format != "half":
        may_write(sidecar_of(out), holds(FORMAT), inputs=(options.model,))
    print(
        export_model(
            options.model,
            out,
            data,
            images=options.images,
            form=options.format,
            with_preprocessing=options.with_preprocessing,
        )
    )
    return 0


def model_line(model: Path, facts: "ModelFacts") -> str:
    """The model and the data it was trained on."""
    drawn = ": synthetic images, so its output means nothing on real skin" if is_drawn(facts.source) else ""
    return f"model: {model} ({facts.architecture}), trained on {facts.source}{drawn}"


def prediction_text(prediction: "Prediction", facts: "ModelFacts") -> str:
    """The diagnosis, all classes by probability, the decisions by threshold, notes and the disclaimer."""
    from exp_tools.serving.predictor import SCOPE, UNLIKE, name_of
    from exp_tools.serving.set_words import NO_SETS

    share = f"{100 * prediction.probability:.1f} %"
    description = f": {prediction.description}" if prediction.description else ""
    lines = [f"{prediction.name} ({prediction.diagnosis}), {share}{description}", ""]
    if prediction.unlike_training:
        lines[:0] = [f"{UNLIKE.format(why=prediction.unlike_why)}.", ""]
    width = max(len(code) for code in prediction.probabilities)
    names = max(len(name_of(code)) for code in prediction.probabilities)
    for code, probability in sorted(prediction.probabilities.items(), key=lambda item: -item[1]):
        bar = "#" * round(BAR * probability)
        lines.append(f"{code:<{width}}  {name_of(code):<{names}}  {100 * probability:>5.1f} %  {bar}".rstrip())
    lines.append("")
    if prediction.melanoma is not None:
        limit = f"{100 * facts.thresholds['melanoma']:.1f} %"
        flagged = f"{'' if prediction.melanoma else 'not '}flagged (threshold {limit})"
        lines.append(f"melanoma: {100 * prediction.melanoma_probability:.1f} %, {flagged}")
    if prediction.abstain:
        lines.append(f"too uncertain to use: below {100 * facts.thresholds['abstain']:.1f} % it is left to a human")
    lines.append(f"prediction set: {prediction.set_note or NO_SETS}")
    untold = [prediction.unlike_why] if prediction.unlike_training is None and prediction.unlike_why else []
    lines += [f"note: {note}" for note in [*untold, *prediction.notes]]
    return "\n".join([*lines, SCOPE, prediction.disclaimer])


def outcome_text(outcome: "Outcome", out: Path) -> str:
    """The number of predicted images, the output file, the faults, and the disclaimer; without scores."""
    from exp_tools.serving.batch import problems_file
    from exp_tools.serving.predictor import DISCLAIMER, SCOPE

    resumed = f", {outcome.resumed:,} of them by the run before" if outcome.resumed else ""
    lines = [f"{out}: {outcome.predicted:,} images predicted{resumed}"]
    if outcome.problems:
        skipped = sum(problem.action == "skipped" for problem in outcome.problems)
        lines.append(f"{skipped:,} left out, {len(outcome.problems) - skipped:,} fixed or noted: {problems_file(out)}")
        lines += [f"  {problem} ({problem.action})" for problem in outcome.problems[:SHOWN]]
        if len(outcome.problems) > SHOWN:
            lines.append(f"  … and {len(outcome.problems) - SHOWN:,} more")
    if outcome.left_out:
        counts = ", ".join(f"{code} {count:,}" for code, count in outcome.left_out.items())
        lines.append(f"not scored, since the model does not know them: {counts}")
    if outcome.torn:
        lines.append(f"not scored, since their lesion has several diagnoses: {outcome.torn:,} images")
    return "\n".join([*lines, SCOPE, DISCLAIMER])
