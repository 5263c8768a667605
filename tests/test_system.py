"""Work beside the main process gives what it would give in it: results, errors, and words when it is killed."""

import os
import signal
import sys

import pytest

from exp_tools import system
from exp_tools.errors import UserError
from exp_tools.system import beside


def twice(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def refuse() -> None:
    raise UserError("no")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("cores", [1, 2])
def test_the_result_is_that_of_the_call(monkeypatch, cores):
    monkeypatch.setattr(system, "cores", lambda: cores)
    number, process = beside(twice, 4)()
    assert number == 8
    forked = cores > 1 and sys.platform.startswith("linux")
    assert (process != os.getpid()) == forked


def test_an_error_is_raised_where_the_result_is_asked_for(monkeypatch):
    monkeypatch.setattr(system, "cores", lambda: 2)
    result = beside(refuse)
    with pytest.raises(UserError, match="no"):
        result()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no fork")
def test_a_killed_process_is_said_with_a_way_out(monkeypatch):
    monkeypatch.setattr(system, "cores", lambda: 2)
    with pytest.raises(UserError, match=r"ended early \(exit status -9\).*taskset -c 0"):
        beside(die)()
