"""How a script ends: its status, its last words, its exit handlers."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
from exp_tools.errors import Stopped, UserError, run_main
atexit.register(print, "exit handlers ran")
def main():
    print("at work")
    {end}
run_main(main)
"""


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("pass", 0, ""),
        ("raise UserError('no such file')", 1, "error: no such file\n"),
        ("raise Stopped('the state is saved', 15)", 143, "the state is saved\n"),
        ("raise Stopped('', 2)", 130, ""),
    ],
)
def test_a_script_ends_with_its_status_and_nothing_unwritten(end, status, message):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end=end)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, message)
    assert done.stdout == "at work\nexit handlers ran\n"


def test_a_fault_of_ours_keeps_its_traceback():
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(end="1 / 0")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
