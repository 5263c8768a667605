"""Scoring commands: a model on another data set, a prediction table, experiments side by side, the model card."""

import argparse
import json
import sys
from pathlib import Path

from exp_tools.cli.groups import Commands
from exp_tools.cli.outputs import is_drawn_by_us, is_report, is_table, may_write, starts_with
from exp_tools.errors import UserError
from exp_tools.models.released import model_path
from exp_tools.project import CARD, LABELS, MODEL, PREDICTIONS, RAW, find_project

GROUP = "evaluate and compare"


def add_commands(commands: Commands) -> None:
    """Add this group's commands."""
    compare = commands.add(
        GROUP,
        "compare",
        _compare,
        "compare experiments: scores with intervals, and whether they differ by more than chance",
        "exp-tools compare workspace my-experiment --metric balanced_accuracy",
    )
    compare.add_argument(
        "experiments",
        nargs="+",
        metavar="EXP",
        help="experiment, branch, tag, commit, `workspace`, predictions.csv, or GROUP=EXP,EXP (seeds, folds)",
    )
    compare.add_argument("--baseline", metavar="EXP", help="what the others are compared with (default: the first)")
    compare.add_argument(
        "--primary", default="macro_auc", metavar="METRIC", help="the score judged first (default: macro_auc)"
    )
    compare.add_argument(
        "--metric", nargs="+", action="extend", help="more, like balanced_accuracy, auc:mel, sensitivity@threshold:mel"
    )
    compare.add_argument(
        "--split", default="val", help="val (default: for choosing), test (for quoting) or external:NAME"
    )
    compare.add_argument("--ensemble", action="store_true", help="score averaged probabilities too")
    compare.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default: 2000)")
    compare.add_argument(
        "--out", metavar="PREFIX", help="write PREFIX.md, PREFIX.csv and the forest plot PREFIX.png (default: none)"
    )
    compare.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text", help="of the output")

    evaluate = commands.add(
        GROUP,
        "evaluate",
        _evaluate,
        "score a trained model on another data set, outside the pipeline",
        "exp-tools evaluate --source ph2 --dir ~/PH2Dataset",
    )
    evaluate.add_argument(
        "--model", type=model_path, default=MODEL, help=f"model file, or `released` (default: {MODEL})"
    )
    evaluate.add_argument("--source", required=True, help="kind of data set: ham10000, ph2, folder, table, isic, …")
    evaluate.add_argument("--dir", type=Path, required=True, help="folder of the data set")
    evaluate.add_argument("--table", help="name of the table, with --source table")
    evaluate.add_argument(
        "--out", type=Path, default=Path("evaluation"), help="folder for predictions and report (default: evaluation)"
    )

    score = commands.add(
        GROUP,
        "score",
        _score,
        "score a predictions.csv again, without its model",
        "exp-tools score data/predictions.csv --melanoma-threshold 0.2",
    )
    score.add_argument("predictions", type=Path, help="prediction table of any experiment")
    score.add_argument("--labels", type=Path, help="labels.csv, for subgroups (default: the project's, where it fits)")
    score.add_argument(
        "--subgroups",
        nargs="+",
        metavar="NAME",
        help="attributes to score apart (default: evaluate.subgroups)",
    )
    score.add_argument("--split", help="test, val or external:NAME (default: test, or the only one there is)")
    score.add_argument("--melanoma-threshold", type=float, help="flag melanoma from this probability on")
    score.add_argument("--abstain", type=float, help="leave to a human what is less certain than this")
    score.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (default: 2000)")
    score.add_argument(
        "--keep",
        type=Path,
        metavar="NAME.csv.gz",
        help="write the table in a third of its size, for Git, and the parameters that made it as NAME.yaml",
    )
    score.add_argument("--json", action="store_true", help="print the whole report as JSON, for programs")

    card = commands.add(GROUP, "card", _card, "print the model card", "exp-tools card --commit > MODEL_CARD.pub.md")
    card.add_argument("--commit", action="store_true", help="with the commit that it belongs to, and its date")
    card.add_argument(
        "--sheet",
        choices=("claim", "tripod", "clear"),
        help="instead a reporting sheet (CLAIM 2024, TRIPOD+AI, CLEAR Derm) with what is known filled in",
    )
    card.add_argument("--format", choices=("markdown", "latex"), default="markdown", help="of the output")


def _compare(options: argparse.Namespace) -> int:
    from exp_tools.evaluation.compare.compare import compare_groups
    from exp_tools.evaluation.compare.render import as_latex, as_markdown, as_table, as_text
    from exp_tools.evaluation.compare.request import gather
    from exp_tools.evaluation.compare.scores import check_metrics
    from exp_tools.evaluation.compare.write import write_comparison
    from exp_tools.evaluation.metrics.catalogue import COST
    from exp_tools.io import guard_cells
    from exp_tools.params import PARAMS_FILE, load_params
    from exp_tools.revisions import count_scored

    if options.out:
        read = [Path(word) for word in options.experiments]
        may_write(Path(f"{options.out}.md"), starts_with("## Comparison"))
        may_write(Path(f"{options.out}.csv"), is_table("made_from", "metric", "verdict"), inputs=read)
        may_write(Path(f"{options.out}.png"), is_drawn_by_us)
    groups, baseline = gather(
        options.experiments,
        options.baseline,
        root=find_project(Path.cwd()),
        predictions=str(PREDICTIONS),
        split=options.split,
        averaged=options.ensemble,
    )
    metrics = check_metrics(options.metric, groups, options.primary, options.split)
    costs = None
    if COST.key in metrics:
        costs = load_params(find_project(Path.cwd()) / PARAMS_FILE).evaluate.costs
        if costs is None:
            raise UserError("the metric `cost` needs the costs of mistakes: set evaluate.costs in params.yaml")
    found = compare_groups(groups, baseline, metrics, split=options.split, costs=costs, resamples=options.resamples)
    if options.split != "val" and (scored := count_scored(find_project(Path.cwd()))) > 1:
        found["notes"].append(
            f"{scored} models of this checkout were scored on this test split: the best of many flatters itself"
        )
    if options.format == "csv":
        print(guard_cells(as_table(found)).to_csv(index=False, lineterminator="\n"), end="")
    else:
        print({"text": as_text, "markdown": as_markdown, "latex": as_latex}[options.format](found).rstrip())
    if options.out:
        write_comparison(Path(options.out), found)
        print(f"written: {options.out}.md, .csv and .png", file=sys.stderr)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from exp_tools.data.labels.issues import REPORT_COLUMNS
    from exp_tools.data.sources.registry import SourceOptions
    from exp_tools.evaluation.predictions import ID_COLUMNS
    from exp_tools.evaluation.report.text import summary_text
    from exp_tools.evaluation.standalone.dataset import TrainingSet, evaluate_standalone
    from exp_tools.params import PARAMS_FILE, load_params
    from exp_tools.system import io_processes

    report = options.out / "report.json"
    is_own = is_report("left_out", "removed")
    read = (options.model, options.table and options.dir / options.table)
    may_write(report, is_own)
    # Without its report such a table is one of the pipeline, or of another command.
    predictions = is_table(*ID_COLUMNS)
    may_write(options.out / "predictions.csv", lambda path: report.is_file() and predictions(path), inputs=read)
    may_write(options.out / "problems.csv", is_table(*REPORT_COLUMNS), inputs=read)
    root = find_project(Path.cwd())
    params = load_params(root / PARAMS_FILE)
    result = evaluate_standalone(
        options.model,
        options.source,
        SourceOptions(dir=str(options.dir.resolve()), table=options.table),
        options.out,
        params,
        root=root,
        known=TrainingSet(root / RAW, root / LABELS, params.data.source),
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
    from exp_tools.evaluation.made_with import parameters_file
    from exp_tools.evaluation.metrics.subgroup_scores import ATTRIBUTES
    from exp_tools.evaluation.report.text import summary_text
    from exp_tools.evaluation.standalone.keep import is_packed, is_parameters, keep_predictions, kept_files
    from exp_tools.evaluation.standalone.rescore import rescore
    from exp_tools.io import plain
    from exp_tools.params import PARAMS_FILE, load_params

    if options.keep:
        table, params = kept_files(options.keep)
        may_write(table, is_packed, inputs=(options.predictions,))
        may_write(
            params,
            lambda path: is_packed(table) and is_parameters(path),
            inputs=(parameters_file(options.predictions),),
        )
    root = find_project(Path.cwd())
    labels, subgroups = options.labels or root / LABELS, options.subgroups
    if subgroups is None:
        subgroups = load_params(root / PARAMS_FILE).evaluate.subgroups if (root / PARAMS_FILE).is_file() else ATTRIBUTES
    report, notes = rescore(
        options.predictions,
        labels,
        needed=options.labels is not None,
        split=options.split,
        thresholds={"melanoma": options.melanoma_threshold, "abstain": options.abstain},
        subgroups=subgroups,
        resamples=options.resamples,
    )
    if options.keep:
        keep_predictions(options.predictions, options.keep)
    for note in notes:
        print(note, file=sys.stderr)
    print(json.dumps(plain(report), indent=2, sort_keys=True) if options.json else summary_text(report))
    return 0


def _card(options: argparse.Namespace) -> int:
    from exp_tools.evaluation.report.latex import markdown_to_latex
    from exp_tools.evaluation.standalone.card import filled_sheet, signed_card

    root = find_project(Path.cwd())
    sheet = filled_sheet(root, options.sheet) if options.sheet else ""
    text = sheet or signed_card(root, str(CARD), commit=options.commit)
    print(markdown_to_latex(text) if options.format == "latex" else text, end="")
    return 0


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
