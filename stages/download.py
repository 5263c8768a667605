"""Bring the images and the label table of `data.source` into data/raw.

The sample set is drawn; a local copy (`data.dir`) is linked file by file, never copied and never changed.

Writes  data/raw/
"""

import shutil

from exp_tools.data.origin import load_source, project_root
from exp_tools.data.parallel import io_processes
from exp_tools.errors import run_main
from exp_tools.params import load_params
from stages.paths import RAW


def main() -> None:
    params = load_params()
    shutil.rmtree(RAW, ignore_errors=True)
    source = load_source(params.data.source)
    done = source.provide(params.data, RAW, root=project_root(), processes=io_processes(params.machine))
    print(f"{RAW}/: {done}")


if __name__ == "__main__":
    run_main(main)
