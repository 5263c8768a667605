"""The one error that speaks to the person at the keyboard."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, what was expected and what to do.

    Stages and the command line print the message alone, without a traceback, and exit with status 1.
    """


def run_main(main: Callable[[], None]) -> None:
    """Run a script's main function; a UserError ends it with the message on stderr and status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
