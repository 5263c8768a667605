"""`python -m exp_tools.cli`, the same as `exp-tools`."""

from exp_tools.cli.main import run

if __name__ == "__main__":
    run()
