"""The command `exp-tools`, also `python -m exp_tools.cli`.

A command imports what it needs when it runs, so that `exp-tools --help` answers at once.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from exp_tools.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status (0 well, 1 an error the user can mend, 2 wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = difflib.get_close_matches(arguments[0], commands, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"exp-tools: no command {arguments[0]!r}; choose one of {', '.join(commands)}{hint}", file=sys.stderr)
        return 2
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="exp-tools",
        description="Tools beside the pipeline. The pipeline itself is run by `make repro` or `dvc repro`.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    models = commands.add_parser(
        "models", help="list the architectures as published: parameters, multiply-adds, what each is"
    )
    models.add_argument("--json", action="store_true", help="as JSON, for programs")
    models.set_defaults(run=_models)

    doctor = commands.add_parser("doctor", help="what this machine and project have, what is missing, how to get it")
    doctor.add_argument("--json", action="store_true", help="as JSON, for programs")
    doctor.add_argument(
        "--measure", action="store_true", help="time a training step of the chosen model in each precision"
    )
    doctor.set_defaults(run=_doctor)

    pairs = commands.add_parser("duplicates", help="find images of the same spot of skin in any folder")
    pairs.add_argument("folder", type=Path, help="images, at any depth")
    pairs.add_argument("--table", type=Path, help="CSV with image_id and, if there, lesion_id, dx, sex, age")
    pairs.add_argument("--out", type=Path, default=Path("duplicates"), help="folder for pairs.csv and pairs.png")
    pairs.add_argument("--processes", type=int, help="how many search at once (default: every core)")
    pairs.set_defaults(run=_duplicates)

    runs = commands.add_parser("runs", help="unfinished training that the same command would go on with")
    runs.add_argument("--delete", metavar="NAME", help="delete what this run left")
    runs.add_argument("--json", action="store_true", help="as JSON, for programs")
    runs.set_defaults(run=_runs)

    evaluate = commands.add_parser("evaluate", help="score a trained model on another set, outside the pipeline")
    evaluate.add_argument("--model", type=Path, default=Path("models/model.safetensors"), help="the model file")
    evaluate.add_argument(
        "--source", required=True, help="what kind of set it is: ham10000, ph2, folder, table, isic, …"
    )
    evaluate.add_argument("--dir", type=Path, required=True, help="the folder with the set")
    evaluate.add_argument("--table", help="source table: the table's name")
    evaluate.add_argument("--out", type=Path, default=Path("evaluation"), help="folder for predictions and report")
    evaluate.set_defaults(run=_evaluate)

    score = commands.add_parser("score", help="score a predictions.csv again, without its model")
    score.add_argument("predictions", type=Path, help="a prediction table of any experiment")
    score.add_argument("--labels", type=Path, help="labels.csv, for subgroups (default: the project's, where it fits)")
    score.add_argument("--split", help="test, val or external:NAME (default: test, or the only one there is)")
    score.add_argument("--melanoma-threshold", type=float, help="flag melanoma from this probability on")
    score.add_argument("--abstain", type=float, help="leave to a human what is less certain than this")
    score.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default: 2000)")
    score.add_argument("--json", action="store_true", help="the whole report as JSON, for programs")
    score.set_defaults(run=_score)

    compare = commands.add_parser(
        "compare",
        help="scores of experiments side by side, with intervals, and whether they differ by more than chance",
    )
    compare.add_argument(
        "experiments",
        nargs="+",
        metavar="EXP",
        help="experiment, branch, tag, commit, `workspace`, predictions.csv, or GROUP=EXP,EXP (seeds, folds)",
    )
    compare.add_argument("--baseline", metavar="EXP", help="what the others are compared with (default: the first)")
    compare.add_argument("--metric", nargs="+", action="extend", help="like balanced_accuracy or sensitivity:mel")
    compare.add_argument("--split", default="test", help="test, val or external:NAME (default: test)")
    compare.add_argument("--ensemble", action="store_true", help="score averaged probabilities too")
    compare.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default: 2000)")
    compare.add_argument("--out", metavar="PREFIX", help="write PREFIX.md, PREFIX.csv and the forest plot PREFIX.png")
    compare.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="of what is printed")
    compare.set_defaults(run=_compare)

    card = commands.add_parser("card", help="print the model card")
    card.add_argument("--commit", action="store_true", help="with the commit that it belongs to, and its date")
    card.set_defaults(run=_card)

    app = commands.add_parser("app", help="the web app: predict, look at experiments, evaluate, on this machine only")
    app.add_argument("--model", type=Path, help="a model file to show (default: those of the project's experiments)")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    app.add_argument("--port", type=int, default=8501, help="port to listen on (default: 8501)")
    app.add_argument("--allow-training", action="store_true", help="let the page queue and run experiments")
    app.set_defaults(run=_app)

    api = commands.add_parser(
        "api", help="serve a trained model as a JSON API, on this machine alone unless told otherwise"
    )
    api.add_argument("--model", type=Path, default=Path("models/model.safetensors"), help="the model file")
    api.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    api.add_argument("--port", type=int, default=8000, help="port to listen on, 0: a free one (default: 8000)")
    api.add_argument("--at-once", type=int, help="requests computed at the same time (default: one for each core)")
    api.set_defaults(run=_api)

    predict = commands.add_parser("predict", help="what a trained model says of one image")
    predict.add_argument("image", type=Path, help="an image file")
    predict.add_argument("--model", type=Path, default=Path("models/model.safetensors"), help="the model, or its .onnx")
    predict.add_argument("--age", type=float, help="of the patient, in years")
    predict.add_argument("--sex", choices=("female", "male"), help="of the patient")
    predict.add_argument("--localization", help="where on the body, in the words of the training data: back, face, …")
    predict.add_argument("--explain", type=Path, metavar="PNG", help="write where the model looked, over the image")
    predict.add_argument("--method", choices=("gradcam", "attention"), default="gradcam", help="the map for --explain")
    predict.add_argument("--json", action="store_true", help="as JSON, for programs")
    predict.set_defaults(run=_predict)

    batch = commands.add_parser("batch", help="predict the images of a folder or a table; goes on where it was stopped")
    batch.add_argument("source", type=Path, help="a folder, or a table with image_id and, if known, dx, age, sex, …")
    batch.add_argument("--images", type=Path, help="the folder with the table's images (default: where the table is)")
    batch.add_argument("--model", type=Path, default=Path("models/model.safetensors"), help="the model, or its .onnx")
    batch.add_argument("--out", type=Path, default=Path("predictions.csv"), help="the table to write")
    batch.add_argument("--batch-size", type=int, default=32, help="images a forward pass (default: 32)")
    batch.set_defaults(run=_batch)

    export = commands.add_parser("export", help="write a trained model as ONNX, checked on real images")
    export.add_argument("--format", choices=("onnx", "onnx-int8"), default="onnx", help="32 bits (default) or 8")
    export.add_argument("--model", type=Path, default=Path("models/model.safetensors"), help="the model file")
    export.add_argument("--out", type=Path, help="the file to write (default: beside the model)")
    export.add_argument("--images", type=Path, help="images to check on (default: the project's test images)")
    export.set_defaults(run=_export)

    recipe = commands.add_parser("recipe", help="list the recipes, or print one: dvc exp run $(exp-tools recipe NAME)")
    recipe.add_argument("name", nargs="?", help="a recipe, to print as words for dvc exp run")
    recipe.set_defaults(run=_recipe)
    return parser, list(commands.choices)


def _models(options: argparse.Namespace) -> int:
    from exp_tools.models.registry import describe_models

    models = describe_models()
    if options.json:
        print(json.dumps(models, indent=2))
        return 0
    rows = [("name", "parameters", "outside the backbone", "multiply-adds", "at", "what it is")]
    for model in models:
        counts = (f"{model['parameters']:,}", f"{model['outside_backbone']:,}", f"{model['multiply_adds'] / 1e9:.2f} G")
        rows.append((model["name"], *counts, f"{model['image_size']} px", model["summary"]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for name, *numbers, summary in rows:
        aligned = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)]
        print("  ".join([f"{name:<{widths[0]}}", *aligned, summary]))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from exp_tools.doctor import diagnose, find_project, report

    checks = diagnose(find_project(Path.cwd()), measure=options.measure)
    print(json.dumps([check._asdict() for check in checks], indent=2) if options.json else report(checks))
    return int(any(check.status == "missing" for check in checks))


def _evaluate(options: argparse.Namespace) -> int:
    from exp_tools.data.facts import Wanted
    from exp_tools.data.parallel import io_processes
    from exp_tools.doctor import find_project
    from exp_tools.evaluation.elsewhere import Known, evaluate_elsewhere
    from exp_tools.evaluation.summary import summary_text
    from exp_tools.params import PARAMS_FILE, load_params

    root = find_project(Path.cwd())
    params = load_params(root / PARAMS_FILE)
    result = evaluate_elsewhere(
        options.model,
        options.source,
        Wanted(dir=str(options.dir.resolve()), table=options.table),
        options.out,
        params,
        root=root,
        known=Known(root / "data/raw", root / "data/prepared/labels.csv", params.data.source),
        processes=io_processes(params.machine),
    )
    print(summary_text(result.report))
    if result.left_out:
        print("left out, since the model does not know them: " + _counted(result.left_out))
    if result.removed is None:
        print("warning: the model's training data are not at hand; whether this set has some of them was not checked")
    elif sum(result.removed.values()):
        print("removed, since the model's own set has them too: " + _counted(result.removed))
    print(f"written: {options.out}/predictions.csv, report.json, problems.csv")
    return 0


def _score(options: argparse.Namespace) -> int:
    from exp_tools.data.files import plain
    from exp_tools.doctor import find_project
    from exp_tools.evaluation.rescoring import score_again
    from exp_tools.evaluation.summary import summary_text

    labels = options.labels or find_project(Path.cwd()) / "data/prepared/labels.csv"
    report, notes = score_again(
        options.predictions,
        labels,
        needed=options.labels is not None,
        split=options.split,
        thresholds={"melanoma": options.melanoma_threshold, "abstain": options.abstain},
        resamples=options.resamples,
    )
    for note in notes:
        print(note, file=sys.stderr)
    print(json.dumps(plain(report), indent=2, sort_keys=True) if options.json else summary_text(report))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from exp_tools.data.files import atomic_write, write_csv
    from exp_tools.doctor import find_project
    from exp_tools.evaluation.compare import compare_groups
    from exp_tools.evaluation.compare_request import gather
    from exp_tools.evaluation.compare_scores import check_metrics
    from exp_tools.evaluation.compare_text import as_markdown, as_table, as_text
    from exp_tools.evaluation.forest import draw_forest

    groups, baseline = gather(
        options.experiments,
        options.baseline,
        root=find_project(Path.cwd()),
        predictions="data/predictions.csv",
        split=options.split,
        averaged=options.ensemble,
    )
    metrics = check_metrics(options.metric, groups)
    found = compare_groups(groups, baseline, metrics, split=options.split, resamples=options.resamples)
    if options.format == "csv":
        print(as_table(found).to_csv(index=False, lineterminator="\n"), end="")
    else:
        print(as_text(found) if options.format == "text" else as_markdown(found).rstrip())
    if options.out:
        with atomic_write(Path(f"{options.out}.md")) as temporary:
            temporary.write_text(as_markdown(found), encoding="utf-8")
        write_csv(Path(f"{options.out}.csv"), as_table(found))
        draw_forest(Path(f"{options.out}.png"), found)
        print(f"written: {options.out}.md, .csv and .png", file=sys.stderr)
    return 0


def _card(options: argparse.Namespace) -> int:
    from exp_tools.doctor import find_project
    from exp_tools.evaluation.card_commit import signed_card

    print(signed_card(find_project(Path.cwd()), "MODEL_CARD.md", commit=options.commit), end="")
    return 0


def _app(options: argparse.Namespace) -> int:
    from exp_tools.app.launch import start
    from exp_tools.app.settings import Outs, Settings
    from exp_tools.doctor import find_project

    outs = Outs(
        model="models/model.safetensors",
        summary="metrics/evaluate.json",
        report="metrics/report.json",
        card="MODEL_CARD.md",
        curves="plots/curves",
        figures="plots/figures",
        training="metrics/train",
        data="metrics/data.json",
    )
    settings = Settings(
        root=str(find_project(Path.cwd())),
        outs=outs,
        model=None if options.model is None else str(options.model.resolve()),
        allow_training=options.allow_training,
    )
    start(settings, host=options.host, port=options.port)
    return 0


def _api(options: argparse.Namespace) -> int:
    try:
        from exp_tools.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "python_multipart"):
            raise
        raise UserError(f"the API needs {error.name}, which is not installed: pip install '.[app]'") from error

    if options.at_once is not None and options.at_once < 1:
        raise UserError(f"--at-once is {options.at_once}; it must be 1 or more")
    serve(options.model, host=options.host, port=options.port, at_once=options.at_once)
    return 0


def _predict(options: argparse.Namespace) -> int:
    import torch
    from PIL import Image

    from exp_tools.data.images import ImageFault
    from exp_tools.data.parallel import cores
    from exp_tools.explain.overlay import overlay
    from exp_tools.serving.predictor import Patient, Predictor
    from exp_tools.serving.telling import model_line, prediction_text

    torch.set_num_threads(cores())
    predictor = Predictor(options.model)
    patient = Patient(options.age, options.sex, options.localization)
    try:
        prediction = predictor.predict(options.image, patient, explain=[options.method] if options.explain else [])
    except ImageFault as fault:
        raise UserError(f"{options.image}: {fault}") from fault
    if options.explain:
        picture = overlay(predictor.prepare(options.image), prediction.maps[options.method])
        try:
            Image.fromarray(picture).save(options.explain, format="PNG")
        except OSError as error:
            raise UserError(f"{options.explain} cannot be written: {error.strerror}") from error
    if options.json:
        told = {"path": str(options.model), "trained_on": predictor.facts.source}
        print(json.dumps(prediction.as_dict() | {"model": told}, indent=2, ensure_ascii=False, allow_nan=False))
        return 0
    print(prediction_text(prediction, predictor.facts))
    print(model_line(options.model, predictor.facts))
    return 0


def _batch(options: argparse.Namespace) -> int:
    from exp_tools.data.parallel import cores
    from exp_tools.evaluation.summary import summary_text
    from exp_tools.params import MachineParams
    from exp_tools.serving.batch import predict_batch
    from exp_tools.serving.predictor import Predictor
    from exp_tools.serving.telling import model_line, outcome_text
    from exp_tools.serving.worklist import worklist
    from exp_tools.training.machine import prepare_machine

    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}; it must be 1 or more")
    automatic = dict.fromkeys(("workers", "threads", "decoders", "device"), "auto")
    device = prepare_machine(MachineParams(**automatic, processes=1, checkpoint_steps=None))
    work = worklist(options.source, options.images)
    predictor = Predictor(options.model, device=device)
    outcome = predict_batch(predictor, work, options.out, batch_size=options.batch_size, threads=cores())
    if outcome.report:
        print(summary_text(outcome.report))
    print(model_line(options.model, predictor.facts))
    print(outcome_text(outcome, options.out))
    return 0


def _export(options: argparse.Namespace) -> int:
    from exp_tools.doctor import find_project
    from exp_tools.serving.examples import PreparedData
    from exp_tools.serving.exporting import export_model

    root = find_project(Path.cwd())
    data = PreparedData(root / "data/prepared/labels.csv", root / "data/splits.csv", root / "data/prepared/images.npy")
    int8 = options.format == "onnx-int8"
    out = options.out or options.model.with_suffix(".int8.onnx" if int8 else ".onnx")
    print(export_model(options.model, out, data, images=options.images, int8=int8))
    return 0


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _recipe(options: argparse.Namespace) -> int:
    from exp_tools.doctor import find_project
    from exp_tools.recipes import REFUSED_BY_DVC, find_recipe, list_recipes, words

    root = find_project(Path.cwd())
    if options.name is None:
        recipes = list_recipes(root)
        width = max(len(recipe.name) for recipe in recipes)
        print("\n".join(f"{recipe.name:<{width}}  {recipe.summary}" for recipe in recipes))
        return 0
    try:
        print("\n".join(words(find_recipe(root, options.name), root)))
    except UserError:
        print(REFUSED_BY_DVC)
        raise
    return 0


def _duplicates(options: argparse.Namespace) -> int:
    from exp_tools.data.duplicates.on_folder import search_folder
    from exp_tools.data.parallel import cores

    print(search_folder(options.folder, options.table, options.out, processes=options.processes or cores()))
    return 0


def _runs(options: argparse.Namespace) -> int:
    from exp_tools.doctor import find_project
    from exp_tools.training.runs import delete_run, list_runs, shown_runs

    folder = (find_project(Path.cwd()) or Path.cwd()) / "runs"
    if options.delete:
        run = delete_run(folder, options.delete)
        print(f"deleted {run.folder} ({run.size / 1e6:.0f} MB)")
        return 0
    rows = shown_runs(list_runs(folder))
    if options.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("nothing is left over: every training run has finished")
    for row in [] if options.json else rows:
        print(f"{row['name']}  {row['summary']}  {row['megabytes']:.0f} MB, {row['state']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
