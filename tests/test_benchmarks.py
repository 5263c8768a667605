"""The benchmarks compare what they say, cover what is promised, and leave a file that can be read."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import save
from helpers.project import ROOT
from PIL import Image

from benchmarks import gpu_cases, statistics, training_cases
from benchmarks.case import compare, of_pairs, of_times
from benchmarks.growth import Point, anonymous_bytes, exponent, link_photographs, measure, memory_case, summary
from benchmarks.report import markdown, print_cases
from benchmarks.training_cases import bare_pass, default_training, make_bench, recipe_training, training_pass
from benchmarks.work import RECIPES, Request, cpu_work
from exp_tools.evaluation.metrics.class_calibration import class_calibration
from exp_tools.evaluation.validation import softmax
from exp_tools.recipes import list_recipes
from exp_tools.training.losses import class_weights

MANDATORY = {
    "prepare",
    "loader",
    "augment",
    *(f"train_{recipe}" for recipe in RECIPES),
    "train_compiled",
    "epoch_soft_attention",
    "epoch_emas",
    "report_1500",
    "report_10000",
    "help",
    "evaluate",
    "features",
    "bootstrap",
    "split",
    "duplicates",
    "predict_one",
    "api_overhead",
    "predict_batch",
    "import",
    "repro_noop",
}
MIB = 2**20


@pytest.fixture
def photographs(tmp_path) -> list[Path]:
    return [save(tmp_path / "photographs" / f"{number}.jpg", number) for number in range(8)]


def test_a_ratio_is_the_median_over_pairs():
    pairs = [(1.0, 1.0), (2.0, 1.0), (1.0, 4.0)]
    case = of_pairs("x", "images/s", 10, pairs, against="y", target=1.1)
    assert (case.ratio, case.spread) == (1.0, (0.5, 4.0))
    assert (case.value, case.limit) == (10, 10)
    assert not case.meets_target


def test_a_time_below_its_limit_meets_the_target():
    case = of_times("x", [1.0, 4.0, 2.0], 3.0, "3 s")
    assert (case.value, case.ratio, case.spread) == (2.0, 1.5, (0.75, 3.0))
    assert case.meets_target
    assert not of_times("x", [3.1], 3.0, "3 s").meets_target


def test_a_slower_rival_gives_a_ratio_above_one():
    case = compare(
        "x", "calls/s", 1, lambda: time.sleep(0.002), lambda: time.sleep(0.02), against="", target=2, repeats=3
    )
    assert 2 < case.ratio < 20
    assert case.value > case.limit


def test_every_promised_case_is_there(photographs, tmp_path):
    assert set(cpu_work(Request(photographs, tmp_path, quick=True, repeats=1))) >= MANDATORY


@pytest.mark.sweep
def test_a_run_writes_what_it_measured(tmp_path):
    out = tmp_path / "found.json"
    words = ["--quick", "--only", "split", "loader", "bootstrap", "--repeats", "2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [case["name"] for case in found["cases"]] == ["loader", "bootstrap", "split"]
    for case in found["cases"]:
        keys = {"name", "value", "unit", "limit", "against", "ratio", "spread", "target", "meets_target"}
        assert set(case) == keys
        assert case["meets_target"] is (case["ratio"] >= case["target"])
        assert case["spread"][0] <= case["ratio"] <= case["spread"][1]
        assert case["name"] in done.stdout
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 500


def test_an_unknown_case_is_refused(tmp_path):
    save(tmp_path / "a.jpg")
    words = ["--images", str(tmp_path), "--only", "lodaer"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.run", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such case: lodaer" in done.stderr


def test_a_missed_target_is_said(capsys):
    print_cases([of_times("slow", [4.0], 2.0, "2 s"), of_times("fast", [1.0], 2.0, "2 s")])
    lines = capsys.readouterr().out.splitlines()
    assert ["MISSED" in line for line in lines] == [False, True, False]


def test_the_page_shows_a_committed_run():
    readme = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    path = ROOT / re.search(r"\]\(\.\./(benchmarks/results/[^)]*[.]json)\)", readme)[1]
    found = json.loads(path.read_text(encoding="utf-8"))
    newer = MANDATORY - {case["name"] for case in found["cases"]}  # than the run, and measured alone
    alone = {"features", "train_compiled", "epoch_emas", "report_1500", "report_10000", "help", "api_overhead"}
    assert newer <= alone | {f"train_{recipe}" for recipe in RECIPES}
    assert [name for name in sorted(newer) if f"`{name}`" not in readme] == []
    assert not found["quick"]
    assert markdown(path) in readme


def test_our_pass_and_the_bare_one_train_on_the_same_batches(photographs, tmp_path, monkeypatch):
    """Both take as many optimizer steps over as many images, and both move the weights."""
    seen: dict[str, list[int]] = {"ours": [], "bare": []}
    steps = []
    bench = make_bench(photographs, tmp_path, size=32, count=24, batch=8, device=torch.device("cpu"))
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *rest: (steps.append(1), original(self, *rest))[1])
    training = default_training(8, "timm", {"backbone": "test_resnet"})
    for name, make in (("ours", training_pass), ("bare", partial(bare_pass, precision="fp32"))):
        steps.clear()
        make(bench, training)()
        seen[name].append(len(steps))
    assert seen == {"ours": [3], "bare": [3]}


def test_each_network_of_a_gpu_is_measured_with_and_without_deterministic_algorithms(
    photographs, tmp_path, monkeypatch
):
    seen = []

    def cases(bench, name, backbone, *, compiled, repeats):
        seen.append((name, backbone, bench, compiled))
        return []

    monkeypatch.setattr(gpu_cases, "_cases", cases)
    for work in gpu_cases.gpu_cases(lambda batch, deterministic: (batch, deterministic), 1).values():
        work()
    for name, backbone in gpu_cases.NETWORKS.items():
        assert (f"train_{name}", backbone, (64, True), False) in seen
        assert (f"train_{name}_free", backbone, (64, False), False) in seen
    assert ("train_resnet50_256_free_compiled", "resnet50", (256, False), True) in seen
    assert len(seen) == 10


def test_the_cases_of_a_gpu_measure_loop_images_and_memory(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 2**32))
    monkeypatch.setitem(gpu_cases.NETWORKS, "lite0", "test_resnet")
    bench = make_bench(photographs, tmp_path, size=32, count=16, batch=8, device=torch.device("cpu"))
    work = gpu_cases.gpu_cases(lambda batch, deterministic: bench, 1)["train_lite0"]
    loop, images, memory = work()
    assert (loop.name, images.name, memory.name) == ("train_lite0", "train_lite0_images", "train_lite0_memory")
    assert images.against == "what the bare loop takes; augmented by 0 loader processes"
    assert (memory.ratio, memory.unit) == (4, "GiB")


def test_every_recipe_that_trains_a_network_is_measured():
    trained = {recipe.name for recipe in list_recipes(ROOT) if recipe.changes["model"]["name"] != "probe"}
    assert set(RECIPES) == trained


@pytest.mark.parametrize("name", RECIPES)
def test_the_made_up_classes_suit_every_recipe(name):
    params = recipe_training(ROOT, name, 8).params
    labels = np.arange(14) % len(training_cases.CLASSES)
    assert class_weights(labels, training_cases.CLASSES, params.class_weights).shape == (7,)


def test_the_made_up_patients_are_in_the_vocabulary(photographs, tmp_path):
    bench = make_bench(photographs, tmp_path, size=32, count=24, batch=8, device=torch.device("cpu"))
    knobs = recipe_training(ROOT, "multimodal", 8).knobs
    most = bench.data().metadata.max(axis=0)
    assert (most[1], most[2]) == (knobs["sexes"] - 1, knobs["localizations"] - 1)


def test_a_recipe_is_measured_as_it_trains(photographs, tmp_path, monkeypatch):
    """What the recipe has rest at its end rests; four batches of a recipe that adds up two are two steps."""
    training = recipe_training(ROOT, "lite0", 8)
    network = training.network()
    resting = [parameter for parameter in network.parameters() if not parameter.requires_grad]
    assert 0.6 < sum(map(torch.numel, resting)) / sum(map(torch.numel, network.parameters())) < 0.75
    steps = []
    original = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *rest: (steps.append(1), original(self, *rest))[1])
    bench = make_bench(photographs, tmp_path, size=32, count=32, batch=8, device=torch.device("cpu"))
    training = replace(training, params=training.params.model_copy(update={"accumulate": 2}))
    for make in (training_pass, partial(bare_pass, precision="fp32")):
        steps.clear()
        make(bench, training)()
        assert len(steps) == 2


@pytest.mark.parametrize(("slow", "best"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_bare_loop_is_the_faster_of_the_two_precisions(photographs, tmp_path, monkeypatch, slow, best):
    bench = make_bench(photographs, tmp_path, size=32, count=8, batch=8, device=torch.device("cpu"))
    works = {name: (lambda name=name: time.sleep(0.02 * (name == slow))) for name in ("fp32", "bf16")}
    monkeypatch.setattr(training_cases, "bare_pass", lambda bench, training, precision: works[precision])
    training = default_training(8, "timm", {"backbone": "test_resnet"})
    work, precision, _ = training_cases.fastest_bare_pass(bench, training)
    assert (work, precision) == (works[best], best)


def test_the_exponent_is_that_of_the_last_two_numbers():
    points = [Point("x", 10, 5.0, 1), Point("x", 100, 1.0, 1), Point("x", 1000, 100.0, 1)]
    assert exponent(points) == pytest.approx(2)
    row = summary(points)["x"]
    assert (row["images"], row["exponent"], row["memory_ratio"]) == ([10, 100, 1000], 2, 1)


def test_memory_that_grows_misses_its_target():
    points = [Point("train", 500, 1, 100), Point("train", 2000, 1, 140), Point("split", 500, 1, 1)]
    assert not memory_case("memory_train", "train", points).meets_target
    assert memory_case("memory_train", "train", [Point("train", 1, 1, 100), Point("train", 2, 1, 101)]).meets_target


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_counts_descendants_and_no_mapped_file(tmp_path):
    np.save(tmp_path / "mapped.npy", np.zeros(80 * MIB, np.uint8))
    mapped = str(tmp_path / "mapped.npy")
    child = f"import numpy; x = numpy.load({mapped!r}, mmap_mode='r'); x.sum(); y = bytearray(50 * {MIB})"
    child += "; print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout.readline() == "1\n"
        found = anonymous_bytes(parent.pid)
        parent.communicate("\n")
    assert 50 * MIB < found < 110 * MIB


@pytest.mark.sweep
def test_growth_runs_the_stages_themselves():
    points = measure((42, 84), None, ("split",))  # which reads what prepare writes
    assert [(point.stage, point.images) for point in points] == [("split", 42), ("split", 84)]
    assert all(point.seconds > 0 and point.anonymous_mib > 10 for point in points)


def test_growth_wants_enough_photographs(photographs, tmp_path):
    (tmp_path / "links").mkdir()
    with pytest.raises(SystemExit, match=r"there are 8 images below .*, not 9"):
        link_photographs(tmp_path / "links", 9, photographs[0].parent)
    assert len(link_photographs(tmp_path / "links", 3, photographs[0].parent)) == 3


def test_the_simulations_print_tables(capsys, monkeypatch):
    parts = ["thresholds", "calibration", "verdicts", "gaps", "disturbed"]
    monkeypatch.setattr(statistics, "HARMS", statistics.HARMS[:2])
    monkeypatch.setattr(statistics, "true_score", lambda lesions, noise: 0.8)
    monkeypatch.setattr(sys, "argv", ["x", "--sets", "2", "--resamples", "20", "--processes", "1", "--only", *parts])
    statistics.main()
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 5
    for table in tables:
        head, rule, *rows = table.splitlines()
        assert rows
        assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
        assert "nan" not in "".join(rows[1:])


def test_a_drawn_network_is_calibrated_before_it_is_made_overconfident():
    drawn = statistics.draw(statistics.counts_of(1100) * 30, np.random.default_rng(0))
    exact = class_calibration(softmax(drawn.logits), drawn.labels, drawn.lesion, statistics.CLASSES, resamples=1)
    for row in exact.values():
        assert (row["slope"], row["ratio"]) == (pytest.approx(1, abs=0.06), pytest.approx(1, abs=0.06))
    sharp = class_calibration(drawn.probabilities, drawn.labels, drawn.lesion, statistics.CLASSES, resamples=1)
    assert sharp["nv"]["slope"] < 0.85
