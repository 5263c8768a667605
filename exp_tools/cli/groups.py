"""The commands of `exp-tools` by group, and the list of them that `exp-tools --help` prints."""

import argparse
from collections.abc import Callable

Run = Callable[[argparse.Namespace], int]


class Commands:
    """The subcommands of a parser, added group by group; `listing` is their part of the help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._subparsers = parser.add_subparsers(
            prog=parser.prog, metavar="COMMAND", required=True, help=argparse.SUPPRESS
        )
        self._groups: dict[str, list[tuple[str, str]]] = {}

    @property
    def names(self) -> list[str]:
        """All commands, in the order in which they were added."""
        return list(self._subparsers.choices)

    def add(self, group: str, name: str, run: Run, help: str, example: str) -> argparse.ArgumentParser:
        """A new command: `help` is its line in the list, `example` one whole command line that works."""
        command = self._subparsers.add_parser(
            name,
            description=f"{help[0].upper()}{help[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        self._groups.setdefault(group, []).append((name, help))
        return command

    def listing(self) -> str:
        """Every command with its line, under the name of its group."""
        width = max(len(name) for name in self.names)
        blocks = [
            "\n".join([f"{group}:", *(f"  {name:<{width}}  {help}" for name, help in rows)])
            for group, rows in self._groups.items()
        ]
        return "\n\n".join(blocks)
