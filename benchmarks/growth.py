"""How time and memory grow with the number of images: the stages as users run them, in processes of their own.

    python -m benchmarks.growth                            drawn images: 500, 2,000, 10,000, 40,000
    python -m benchmarks.growth --counts 500 2000          other numbers
    python -m benchmarks.growth --images FOLDER            photographs below a folder, which must be enough
    python -m benchmarks.growth --stages prepare train     some stages

Everything is done at 64 pixels; training is one epoch of a tiny network. Memory is the anonymous memory of all
processes of a stage at its peak: what is mapped from files, like images.npy, is the kernel's to take back and is not
counted. Linux only.

Writes benchmarks/results/growth-<drawn or photographs>-<date>-<processor>.json and .png, unless --out names a file.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from tqdm import tqdm

from benchmarks.case import Case
from benchmarks.report import machine_facts, results_path, write_growth
from benchmarks.start_cases import copy_project
from exp_tools.data.images.decode import find_images
from exp_tools.params import PARAMS_FILE
from exp_tools.taxonomy import DIAGNOSES

COUNTS = (500, 2_000, 10_000, 40_000)
STAGES = {
    "prepare": ("stages.prepare",),
    "duplicates": ("exp_tools.cli", "duplicates", "data/raw", "--out", "found"),
    "split": ("stages.split",),
    "train": ("stages.train",),
    "ood": ("stages.ood",),
    "calibrate": ("stages.calibrate",),
    "evaluate": ("stages.evaluate",),
}
"""What `python -m` runs for each."""
CHAIN = ("prepare", "split", "train", "ood", "calibrate", "evaluate")
"""Stages that read what the one before has written."""
SIZE = 64
MIB = 2**20
OVERRIDES = {
    "data": {"source": "table", "dir": "photographs"},
    "prepare": {"image_size": SIZE, "duplicates": "known"},
    "model": {"name": "soft_attention", "soft_attention": {"backbone": "test_resnet"}},
    "train": {"epochs": 1, "patience": None},
}


@dataclass(frozen=True)
class Point:
    """What a stage took for a number of images: seconds, and MiB of anonymous memory at its peak."""

    stage: str
    images: int
    seconds: float
    anonymous_mib: float


def measure(counts: Sequence[int], photographs: Path | None, stages: Sequence[str] = tuple(STAGES)) -> list[Point]:
    """Run stages on each number of images, and, unmeasured, those whose results they read."""
    points = []
    needed = {before for stage in stages if stage in CHAIN for before in CHAIN[: CHAIN.index(stage)]}
    with tempfile.TemporaryDirectory() as name:
        for count in counts:
            project = Path(name) / str(count)
            make_project(project, count, photographs)
            run(project, "stages.download")
            for stage, words in STAGES.items():
                if stage not in needed.union(stages):
                    continue
                if stage == "evaluate":
                    run(project, "stages.external")
                took = run(project, *words)
                if stage in stages:
                    points.append(Point(stage, count, *took))
    return points


def make_project(folder: Path, count: int, photographs: Path | None) -> None:
    """A copy of the project with a table of `count` images, two of a lesion, and parameters for this measurement."""
    copy_project(folder)
    content = yaml.safe_load((folder / PARAMS_FILE).read_text(encoding="utf-8"))
    for section, values in OVERRIDES.items():
        for key, value in values.items():
            content[section][key] = content[section][key] | value if isinstance(value, dict) else value
    (folder / PARAMS_FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    images = folder / "photographs"
    images.mkdir()
    files = link_photographs(images, count, photographs) if photographs else draw_noise(images, count)
    codes = list(DIAGNOSES)
    rows = [f"{name},{place // 2},{codes[place // 2 % len(codes)]}" for place, name in enumerate(files)]
    (images / "table.csv").write_text("\n".join(["image_id,lesion_id,dx", *rows]) + "\n", encoding="utf-8")


def draw_noise(folder: Path, count: int) -> list[str]:
    """JPEGs of 200x150 pixels with smooth random blotches; no two are alike. (The duplicate search takes
    twice as long on them as on skin, since they are full of key points.)"""
    names = [f"image_{place:06d}" for place in range(count)]
    for place, name in enumerate(tqdm(names, desc="draw", disable=None)):
        blotches = np.random.default_rng(place).integers(0, 256, (15, 20, 3), dtype=np.uint8)
        picture = Image.fromarray(blotches).resize((200, 150), Image.Resampling.BICUBIC)
        picture.save(folder / f"{name}.jpg", quality=90)
    return names


def link_photographs(folder: Path, count: int, photographs: Path) -> list[str]:
    """Links to the first photographs below a folder."""
    found = find_images(photographs)
    if len(found) < count:
        raise SystemExit(f"there are {len(found):,} images below {photographs}, not {count:,}")
    chosen = dict(list(found.items())[:count])
    for path in chosen.values():
        (folder / path.name).symlink_to(path.resolve())
    return list(chosen)


def run(project: Path, *words: str) -> tuple[float, float]:
    """Run `python -m` in a project: seconds, and MiB of anonymous memory of all its processes at the peak."""
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", *words], cwd=project, stdout=said, stderr=said)
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        took = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{words[0]} failed on {project.name} images:\n{said.read().decode()[-3000:]}")
    return took, peak / MIB


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process and its descendants now."""
    total = 0
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            total += sum(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon:"))
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="utf-8") as children:
                total += sum(anonymous_bytes(int(child)) for child in children.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended meanwhile
    return total


def memory_case(name: str, stage: str, points: Sequence[Point]) -> Case:
    """Whether a stage's memory stays the same when there are several times as many images."""
    few, many = (point for point in points if point.stage == stage)
    ratio = few.anonymous_mib / many.anonymous_mib
    against = f"anonymous memory with {few.images:,} images over that with {many.images:,}"
    return Case(name, many.anonymous_mib, "MiB", few.anonymous_mib, against, ratio, (ratio, ratio), 0.95)


def exponent(points: Sequence[Point]) -> float:
    """Slope of log(seconds) over log(images) between the two largest numbers: 1 is a straight line, 2 a square."""
    one, other = sorted(points, key=lambda point: point.images)[-2:]
    return math.log(other.seconds / one.seconds) / math.log(other.images / one.images)


def summary(points: Sequence[Point]) -> dict[str, dict]:
    """For each stage its points, the exponent, and its memory at the greatest number over that at the least."""
    table = {}
    for stage in dict.fromkeys(point.stage for point in points):
        own = sorted((point for point in points if point.stage == stage), key=lambda point: point.images)
        table[stage] = {
            "images": [point.images for point in own],
            "seconds": [round(point.seconds, 2) for point in own],
            "anonymous_mib": [round(point.anonymous_mib) for point in own],
            "exponent": round(exponent(own), 2) if len(own) > 1 else None,
            "memory_ratio": round(own[-1].anonymous_mib / own[0].anonymous_mib, 2),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="numbers of images")
    parser.add_argument("--images", type=Path, help="folder of photographs (default: drawn ones)")
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=tuple(STAGES), help="stages to measure")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    arguments = parser.parse_args()
    kind = "photographs" if arguments.images else "drawn"
    out = arguments.out or results_path(f"growth-{kind}-")
    points = measure(sorted(arguments.counts), arguments.images, arguments.stages)
    table = summary(points)
    print(f"{'stage':12} {'images':>8} {'seconds':>9} {'ms per image':>12} {'MiB':>7}")
    for point in points:
        each = 1000 * point.seconds / point.images
        print(f"{point.stage:12} {point.images:>8,} {point.seconds:>9.1f} {each:>12.2f} {point.anonymous_mib:>7,.0f}")
    for stage, row in table.items():
        print(f"{stage}: time grows as images^{row['exponent']}, memory {row['memory_ratio']} times")
    write_growth(out, {"machine": machine_facts(), "images": kind, "stages": table})


if __name__ == "__main__":
    main()
