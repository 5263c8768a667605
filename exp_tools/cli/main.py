"""The command `exp-tools`, also `python -m exp_tools.cli`.

A command imports what it needs when it runs, so that `exp-tools --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from exp_tools.cli import evaluate, labels, pipeline, serve, study
from exp_tools.cli.groups import Commands
from exp_tools.errors import UserError, did_you_mean, end_process, faults_of_the_system
from exp_tools.system import collect_garbage


def run() -> NoReturn:
    """The command as a process of its own, quick to start and to end."""
    collect_garbage(rarely=True)
    end_process(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the result is the exit status (0 success, 1 an error the user can fix, 2 wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser, names = _parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        hint = did_you_mean(arguments[0], names)
        print(f"exp-tools: no command {arguments[0]!r}{hint}; choose one of {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        try:
            options = parser.parse_args(arguments)
            with faults_of_the_system():
                return options.run(options)
        finally:
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe (`| head`) has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser and the names of its commands."""
    parser = argparse.ArgumentParser(
        prog="exp-tools",
        usage="exp-tools COMMAND [options]",
        description="Tools around the pipeline. The pipeline itself is run by `make repro` or `dvc repro`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(parser)
    pipeline.add_commands(commands)
    study.add_commands(commands)
    evaluate.add_commands(commands)
    labels.add_commands(commands)
    serve.add_commands(commands)
    parser.epilog = f"{commands.listing()}\n\n`exp-tools COMMAND --help` shows a command's options and an example."
    return parser, commands.names
