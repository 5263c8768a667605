"""What several tests share: the parameter file, real data where they exist, small packed sets."""

import csv
import datetime
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from helpers.project import ROOT, TINY, Project, clone

from exp_tools.params import Params, parse_params

REAL_DATA = ROOT.parent / "shared" / "data"
gc.set_threshold(50_000)  # collecting imports every test's libraries: a million objects and no garbage to look for


SLOW = (("test_app_browser", "test_readme", "test_distributed", "test_resume"), ("test_pipeline", "test_users_files"))
"""Files of minutes, in two parts that take as long."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-sweeps", metavar="CSV", help="write the results of the long sweeps, with today's date")


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """The table of sweeps, when `--record-sweeps` asks for it and at least one ran."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call" and "sweep" in report.keywords
    ]
    path = config.getoption("--record-sweeps")
    if path and reports:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("test", "result", "seconds", "date"))
            for report in sorted(reports, key=lambda report: report.nodeid):
                writer.writerow((report.nodeid, report.outcome, round(report.duration), datetime.date.today()))


def pytest_collection_finish() -> None:
    """What is imported now stays: do not search it for garbage again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each half of the list, which is what one of two test processes begins with, starts with a part of SLOW.

    So short tests are left for the end, to fill the time of whoever is ready first. Those that need the project that
    ran, which takes a minute to make, come last.
    """
    slow = [[item for item in items if item.path.stem.startswith(names)] for names in SLOW]
    rest = [item for item in items if not any(item in part for part in slow)]
    rest.sort(key=lambda item: "ran_project" in item.fixturenames)
    middle = max(0, len(items) // 2 - len(slow[0]))
    items[:] = [*slow[0], *rest[:middle], *slow[1], *rest[middle:]]


@pytest.fixture(autouse=True)
def home():
    """Each test begins in the project's folder, whatever one before it did; the folders of passed tests are gone."""
    yield
    os.chdir(ROOT)


@pytest.fixture
def content() -> dict:
    """The content of params.yaml, to change at will."""
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def params(content) -> Params:
    return parse_params(content)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images beside the project; tests that want it are skipped where it is not."""
    if not REAL_DATA.is_dir():
        pytest.skip("no real data beside the project")
    return REAL_DATA


@pytest.fixture
def packed(tmp_path):
    """Eight random 32x32 images of four classes, on disk as images.npy; returns (path, labels)."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return tmp_path / "images.npy", np.arange(8) % 4


@pytest.fixture(scope="session")
def ran_project(tmp_path_factory) -> Project:
    """A clone with a tiny configuration in which `dvc repro` ran once, result committed; copy it to change it.

    All test processes share one: the first to come makes it, the others wait.
    """
    several = "PYTEST_XDIST_WORKER" in os.environ
    folder = (tmp_path_factory.getbasetemp().parent if several else tmp_path_factory.mktemp("ran")) / "ran-project"
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            project = clone(folder / "project", TINY)
            project.run("dvc", "repro")
            project.run("git", "add", "-A")
            project.run("git", "commit", "-qm", "run")
            (folder / "done").touch()
    return Project(folder / "project")
