"""Commands around the pipeline: recipes, unfinished runs, duplicates, architectures, and a check of the machine."""

import argparse
import json
import shlex
from functools import partial
from pathlib import Path

from exp_tools.cli.groups import Commands
from exp_tools.cli.outputs import is_drawn_by_us, is_table, may_write
from exp_tools.errors import UserError
from exp_tools.project import RUNS_FOLDER, find_project

GROUP = "set up and train"
NOT_BEFORE = 3
"""Status of `data check` where `dvc repro` would fail, or delete a file of the user's."""


def add_commands(commands: Commands) -> None:
    """Add this group's commands."""
    doctor = commands.add(
        GROUP,
        "doctor",
        _doctor,
        "check this machine and project: what is missing, and how to get it",
        "exp-tools doctor",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.add_argument("--measure", action="store_true", help="time a training step of the chosen model per precision")

    data = commands.add(
        GROUP,
        "data",
        _data,
        "check, before dvc repro, what DVC cannot see: changes of your folder, dead links, files that it would delete",
        "exp-tools data check",
    )
    data.add_argument(
        "action",
        choices=("check",),
        help="status 1: data.dir differs from data/raw; 3: dvc repro would fail, or delete a file of yours",
    )

    models = commands.add(
        GROUP,
        "models",
        _models,
        "list the architectures as published: parameters, multiply-adds, what each is",
        "exp-tools models",
    )
    models.add_argument("--json", action="store_true", help="print JSON, for programs")

    weights = commands.add(
        GROUP,
        "weights",
        _weights,
        "show how a weight file would fit a network: prefix, what fits, what is new, what is left over",
        "exp-tools weights checkpoint.pth --backbone resnet50",
    )
    weights.add_argument("file", metavar="FILE", help="path, local-dir:FOLDER or hf-hub:owner/name")
    weights.add_argument("--backbone", metavar="NAME", help="a network of timm (default: the model of params.yaml)")

    recipe = commands.add(
        GROUP,
        "recipe",
        _recipe,
        "list the recipes, or print one as arguments of dvc exp run",
        "dvc exp run $(exp-tools recipe emas)",
    )
    recipe.add_argument("name", nargs="?", help="a recipe to print")

    runs = commands.add(
        GROUP, "runs", _runs, "list unfinished training, which the same command would resume", "exp-tools runs"
    )
    runs.add_argument("--delete", metavar="NAME", help="delete what this run left")
    runs.add_argument("--json", action="store_true", help="print JSON, for programs")

    pairs = commands.add(
        GROUP,
        "duplicates",
        _duplicates,
        "find images of the same spot of skin in any folder",
        "exp-tools duplicates ~/images --out duplicates",
    )
    pairs.add_argument("folder", type=Path, help="images, at any depth")
    pairs.add_argument(
        "--table", type=Path, help="CSV with image_id and, where known, lesion_id, dx, sex, age, localization"
    )
    pairs.add_argument(
        "--out",
        type=Path,
        default=Path("duplicates"),
        help="folder for tables and sheets of pairs (default: duplicates)",
    )
    pairs.add_argument(
        "--embed",
        type=Path,
        metavar="WEIGHTS",
        help="also look at pairs with similar embeddings: a weight file of any timm network, trained on ImageNet say",
    )
    pairs.add_argument("--backbone", help="timm's name of that network (default: the weight file's name)")
    pairs.add_argument("--processes", type=int, help="how many processes search (default: one per core)")


def _doctor(options: argparse.Namespace) -> int:
    from exp_tools.doctor import diagnose, report

    checks = diagnose(find_project(Path.cwd()), measure=options.measure)
    print(json.dumps([check._asdict() for check in checks], indent=2) if options.json else report(checks))
    return int(any(check.status == "missing" for check in checks))


def _data(options: argparse.Namespace) -> int:
    from exp_tools.data_check import (
        LINK_AGAIN,
        changes_of_data,
        dead_links,
        strays,
        verdict_faults,
        verdicts_on_labels,
    )

    root = find_project(Path.cwd())
    wrong = dead_links(root) + verdict_faults(root)
    if lost := strays(root):
        more = f" (and {len(lost) - 1:,} more)" if lost[1:] else ""
        move = f"mv {shlex.quote(str(lost[0]))} ."
        wrong.append(f"{lost[0]} is not the pipeline's{more}, and DVC deletes it when the stage runs: {move}")
    if wrong:
        print("\n".join(wrong))
        return NOT_BEFORE
    print(verdicts_on_labels(root))
    added, gone = changes_of_data(root)
    if not (added or gone):
        print("data/raw has all files of data.dir")
        return 0
    for names, what in ((added, "new in"), (gone, "no more in")):
        if names:
            print(f"{what} data.dir: {', '.join(names[:5])}" + (f" and {len(names) - 5:,} more" if names[5:] else ""))
    print(f"DVC cannot see that: {LINK_AGAIN}")
    return 1


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


def _weights(options: argparse.Namespace) -> int:
    import torch

    from exp_tools.models.pretrained import match_weights
    from exp_tools.models.registry import build_model
    from exp_tools.params import PARAMS_FILE, load_params

    name, knobs = "timm", {"backbone": options.backbone}
    if options.backbone is None:
        model = load_params(find_project(Path.cwd()) / PARAMS_FILE).model
        name, knobs = model.name, model.architecture
    with torch.device("meta"):
        network = build_model(name, knobs, 2)
    match = match_weights(network, options.file)
    fault = match.fault()
    print(f"{options.file} {'does not fit' if fault else 'fits'} {match.names}\n{match.report()}")
    if fault:
        raise UserError(f"{options.file}: {fault}")
    return 0


def _recipe(options: argparse.Namespace) -> int:
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


def _runs(options: argparse.Namespace) -> int:
    from exp_tools.training.checkpoints import delete_run, list_runs, shown_runs

    folder = find_project(Path.cwd()) / RUNS_FOLDER
    if options.delete:
        run = delete_run(folder, options.delete)
        print(f"deleted {run.folder} ({run.size / 1e6:.0f} MB)")
        return 0
    rows = shown_runs(list_runs(folder))
    if options.json:
        print(json.dumps(rows, indent=2))
    elif not rows:
        print("no unfinished runs: every training has ended")
    for row in [] if options.json else rows:
        print(f"{row['name']}  {row['summary']}  {row['megabytes']:.0f} MB, {row['state']}")
    return 0


def _duplicates(options: argparse.Namespace) -> int:
    from exp_tools.data.duplicates.folder import search_folder
    from exp_tools.data.duplicates.groups import REPORT_COLUMNS
    from exp_tools.data.duplicates.verdicts import is_not_judged
    from exp_tools.system import cores

    may_write(options.out / "pairs.csv", is_table(*REPORT_COLUMNS), inputs=(options.table,))
    may_write(options.out / "to_judge.csv", is_not_judged)
    for page in [options.out / "pairs_001.png", *sorted(options.out.glob("pairs_[0-9]*.png"))]:
        may_write(page, is_drawn_by_us)
    embed = None
    if options.embed is not None:
        from exp_tools.models.embeddings import embed_images

        embed = partial(embed_images, weights=options.embed, backbone=options.backbone)
    elif options.backbone is not None:
        raise UserError("--backbone names the network of --embed: add --embed WEIGHTS")
    processes = options.processes or cores()
    print(search_folder(options.folder, options.table, options.out, embed=embed, processes=processes))
    return 0
