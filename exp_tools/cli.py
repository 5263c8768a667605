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

    checks = diagnose(find_project(Path.cwd()))
    print(json.dumps([check._asdict() for check in checks], indent=2) if options.json else report(checks))
    return int(any(check.status == "missing" for check in checks))


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
