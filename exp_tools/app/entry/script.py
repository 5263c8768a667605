"""The script that Streamlit runs from top to bottom on each interaction.

It is not next to the package `pages`, whose modules Streamlit would take for scripts: the first visitor of a new server
would then get an empty page at any address but "/".
"""

import sys

from exp_tools.app.main import run
from exp_tools.app.parts.settings import Settings

if __name__ == "__main__":
    run(Settings.from_text(sys.argv[1]))
