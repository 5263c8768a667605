"""What a benchmark leaves: a table on the screen, a JSON file and a picture, with the facts of the machine.

python -m benchmarks.report FILE    the table of a JSON file, as docs/performance.md shows it
"""

import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.case import Case
from exp_tools.evaluation.plots.style import COLOURS, STYLE, new_figure, save_figure
from exp_tools.io import write_json
from exp_tools.system import cores

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "torchvision", "timm", "opencv-python-headless", "pillow", "numpy", "dvc", "onnxruntime")
MISSED, MET = COLOURS[4:6]


def machine_facts(device: str = "cpu") -> dict[str, Any]:
    """Processor, what it can compute in, cores, memory, GPU, Python and libraries."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    facts = {
        "cpu": cpu_name(),
        "instructions": sorted(name for name, there in flags.items() if there is True),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in LIBRARIES},
    }
    return facts | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def cpu_name() -> str:
    """What the processor calls itself."""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if found := re.search(r"model name\s*:\s*(.+)", text):
            return found[1].strip()
    return platform.processor() or platform.machine()


def version_of(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def results_path(prefix: str = "", device: str = "cpu") -> Path:
    """benchmarks/results/<prefix><date>-<processor or GPU>.json"""
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{prefix}{datetime.date.today().isoformat()}-{slug}.json"


def print_cases(cases: Sequence[Case]) -> None:
    """A row per case: what was measured, its limit or rival, their ratio and its spread, and what it should be."""
    wide = max(len(case.name) for case in cases)
    print(f"{'case':{wide}} {'measured':>18} {'limit':>9}  {'ratio':>6} {'spread':>13}  {'target':>6}  against")
    for case in cases:
        spread = f"{case.spread[0]:.2f}-{case.spread[1]:.2f}"
        print(
            f"{case.name:{wide}} {case.value:>9,.3g} {case.unit:8} {case.limit:>9,.3g}  {case.ratio:>6.2f} {spread:>13}"
            f"  {case.target:>6.3g}  {'' if case.meets_target else 'MISSED: '}{case.against}"
        )


def write_cases(path: Path, cases: Sequence[Case], run: Mapping[str, Any]) -> None:
    """Write the JSON file, with the facts of the run in front, and the picture next to it."""
    rows = [
        {
            "name": case.name,
            "value": float(f"{case.value:.5g}"),
            "unit": case.unit,
            "limit": float(f"{case.limit:.5g}"),
            "against": case.against,
            "ratio": round(case.ratio, 3),
            "spread": [round(edge, 3) for edge in case.spread],
            "target": round(case.target, 3),
            "meets_target": case.meets_target,
        }
        for case in cases
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**run, "cases": rows})
    draw_cases(path.with_suffix(".png"), cases, f"{run['machine']['cpu']}, {run['machine']['cores']} cores")


def markdown(path: Path) -> str:
    """The cases of a JSON file as a table in Markdown."""
    lines = ["| case | measured | limit or rival | ratio | wanted |", "|---|---|---|---|---|"]
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"]:
        low, high = case["spread"]
        ratio = f"{_short(case['ratio'])} ({_short(low)}-{_short(high)})"
        cells = [
            f"`{case['name']}`",
            f"{_short(case['value'])} {case['unit']}",
            f"{_short(case['limit'])}: {case['against']}",
            ratio if case["meets_target"] else f"**{ratio}**",
            _short(case["target"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,}".removesuffix(".0")


def draw_cases(path: Path, cases: Sequence[Case], title: str) -> None:
    """Each case's ratio, median and spread, as a multiple of its target, on a logarithmic axis."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(8, 1.2 + 0.3 * len(cases))
        for row, case in enumerate(cases):
            low, middle, high = (value / case.target for value in (case.spread[0], case.ratio, case.spread[1]))
            colour = MET if case.meets_target else MISSED
            axes.plot([low, high], [row, row], color=colour, linewidth=2)
            axes.plot([middle], [row], "o" if case.meets_target else "X", color=colour, markersize=7)
            axes.annotate(f"{case.ratio:.3g}", (high, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.set_yticks(range(len(cases)), [case.name for case in cases])
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel("ratio (the number) as a multiple of its target: right of the line it is met")
        axes.set_title(title)
        save_figure(figure, path)


def write_growth(path: Path, content: Mapping[str, Any]) -> None:
    """Write what `benchmarks.growth` found, and a picture: seconds and memory of each stage by the number of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, dict(content))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        times, memory = figure.subplots(1, 2)
        for colour, (stage, row) in zip(COLOURS, content["stages"].items(), strict=False):
            label = stage if row["exponent"] is None else f"{stage} (images^{row['exponent']:.2f} at the end)"
            times.plot(row["images"], row["seconds"], "o-", color=colour, label=label)
            memory.plot(row["images"], row["anonymous_mib"], "o-", color=colour, label=stage)
        for axes, what in ((times, "seconds"), (memory, "anonymous memory at the peak, MiB")):
            axes.set_xscale("log")
            axes.set_xlabel("images")
            axes.set_ylabel(what)
        times.set_yscale("log")
        memory.set_ylim(bottom=0)
        times.legend(frameon=False, fontsize=8)
        save_figure(figure, path.with_suffix(".png"))


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1])))
