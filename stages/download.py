"""Bring the images and tables of `data.source` into data/raw.

The sample set is drawn, a local copy (`data.dir`) is linked file by file, never copied and never changed, a download
goes to the store downloads/, where it is verified once and linked from.

Writes  data/raw/, of which nothing goes but what this stage made
"""

from exp_tools.data.acquire.link import provide, refuse_own_folder
from exp_tools.data.acquire.managed_folder import refilled
from exp_tools.data.sources.registry import SourceOptions, licence_text, spec_of
from exp_tools.errors import run_main
from exp_tools.params import load_params
from exp_tools.project import FILLED, RAW, project_root
from exp_tools.system import io_processes


def main() -> None:
    params = load_params()
    root = project_root()
    wanted = SourceOptions(
        dir=params.data.dir,
        second_dir=params.data.second_dir,
        table=params.data.table,
        test_table=params.data.test_table,
        columns=params.data.columns,
        classes=params.data.classes,
        filter=params.data.filter,
        licences=params.data.licences,
        query=params.data.query,
        limit=params.data.limit,
        seed=params.data.seed,
        sample_images=params.data.sample_images,
    )
    refuse_own_folder(wanted, FILLED, root)
    with refilled(RAW, "data.dir") as raw:
        done = provide(params.data.source, wanted, raw, root=root, processes=io_processes(params.machine))
    print(f"{licence_text(spec_of(params.data.source))}{RAW}/: {done}")


if __name__ == "__main__":
    run_main(main)
