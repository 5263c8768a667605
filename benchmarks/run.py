"""Speed as ratios: each case against its limit or a rival, both measured in this run, in turns.

    make bench                                          about a quarter of an hour on two cores, on drawn images
    make bench BENCH_ARGS=--quick                       fewer repeats and smaller sets: less than ten minutes
    make bench BENCH_ARGS="--images FOLDER"             on the photographs below a folder
    make bench BENCH_ARGS="--only loader predict_one"   some cases
    make bench BENCH_ARGS="--device cuda"               training on a GPU: bf16, 224 pixels, four networks

Prints a table with the median over the repeats and the spread, and writes benchmarks/results/<date>-<processor>.json
with a picture next to it (with --only: nothing, unless --out names a file). Nothing here is a test: a busy machine
changes seconds, and ratios a little.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.case import Case

# Nothing heavy up here: the processes that decode images for a case import this module again.


def run(work: Mapping[str, Callable[[], Case | list[Case]]], only: Sequence[str]) -> list[Case]:
    """Do the work, or that of the cases in `only`, and say what each took."""
    cases: list[Case] = []
    for name, do in work.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        found = do()
        cases += [found] if isinstance(found, Case) else found
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller sets")
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn ones)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="these cases alone")
    parser.add_argument("--repeats", type=int, help="measurements a case (default: 7, quick 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: training on a GPU")
    parser.add_argument("--out", type=Path, help="the JSON file (default: in benchmarks/results)")
    arguments = parser.parse_args()

    from benchmarks.report import machine_facts, print_cases, results_path, write_cases
    from benchmarks.work import Request, cpu_work, gpu_work
    from exp_tools.data.images.decode import find_images
    from exp_tools.data.synthetic.generate import write_sample
    from exp_tools.system import cores

    quick, start = arguments.quick, time.perf_counter()
    repeats = arguments.repeats or (3 if quick else 7)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        if arguments.images is None:
            write_sample(scratch / "sample", images=400 if quick else 1000, seed=0, processes=cores())
        folder = arguments.images or scratch / "sample"
        files = list(find_images(folder).values())
        if not files:
            parser.error(f"there is no image below {folder}")
        request = Request(files, scratch, quick, repeats)
        work = gpu_work(request) if arguments.device == "cuda" else cpu_work(request)
        if unknown := sorted(set(arguments.only) - set(work)):
            parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(work)}")
        cases = run(work, arguments.only)
    facts = {
        "machine": machine_facts(arguments.device),
        "images": f"{len(files):,} {'photographs' if arguments.images else 'drawn images'}",
        "quick": quick,
        "repeats": repeats,
        "seconds": round(time.perf_counter() - start),
    }
    print(f"{facts['images']}, {facts['machine']['cpu']}, {cores()} cores, {repeats} repeats, {facts['seconds']} s")
    print_cases(cases)
    path = arguments.out or (None if arguments.only else results_path(device=arguments.device))
    if path:
        write_cases(path, cases, facts)
        print(f"{path}, {path.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
