"""`python -m exp_tools.cli`, the same as `exp-tools`."""

import sys

from exp_tools.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
