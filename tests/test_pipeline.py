"""The pipeline under real DVC, in a clone with a tiny configuration: it runs, repeats itself, runs what it must."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from helpers.project import TINY, Project, clone

RESULTS = (
    "MODEL_CARD.md",
    "metrics/**/*",
    "data/predictions.csv",
    "data/splits.csv",
    "models/model.safetensors",
    "plots/**/*",
)


STAGES = ("download", "prepare", "external", "features", "split", "train", "ood", "calibrate", "evaluate", "explain")


@pytest.fixture(scope="module")
def project(ran_project, tmp_path_factory) -> Project:
    """A copy of the project that ran, cache and all, to change at will."""
    return ran_project.copy(tmp_path_factory.mktemp("pipeline") / "project")


@pytest.fixture
def edit(project):
    """Change keys of params.yaml for one test."""
    path = project.folder / "params.yaml"
    before = path.read_text(encoding="utf-8")

    def change(**keys):
        content = yaml.safe_load(before)
        for dotted, value in keys.items():
            *sections, key = dotted.split("__")
            place = content
            for section in sections:
                place = place[section]
            place[key] = value
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    yield change
    path.write_text(before, encoding="utf-8")


def stages_run(project: Project, *arguments: str) -> list[str]:
    """The stages that `dvc repro` runs, or with `--dry` would run knowing nothing yet of their outputs."""
    output = project.run("dvc", "repro", *arguments).stdout
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def back_to_the_commit(project: Project) -> None:
    project.run("git", "reset", "-q", "--hard")
    project.run("dvc", "checkout", "--force")
    assert stages_run(project, "--dry") == []


def test_everything_is_written_and_nothing_else_is_left(project):
    metrics = json.loads((project.folder / "metrics/evaluate.json").read_text())
    named = {"accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "macro_auc", "ece", "brier"}
    assert named <= metrics.keys()
    predictions = pd.read_csv(project.folder / "data/predictions.csv")
    splits = pd.read_csv(project.folder / "data/splits.csv")
    expected = splits[splits["split"] != "train"].set_index("image_id")["split"]
    assert predictions.set_index("image_id")["split"].sort_index().to_dict() == expected.sort_index().to_dict()
    assert len(list((project.folder / "plots").rglob("*.png"))) >= 6
    assert not list(project.folder.rglob("*.tmp"))
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_calibration_is_fitted_on_the_logits_that_evaluation_computes(project):
    """Training is in bf16, all else in fp32."""
    fitted = pd.read_csv(project.folder / "data/validation.csv").set_index("image_id")
    scored = pd.read_csv(project.folder / "data/predictions.csv").set_index("image_id").loc[fitted.index]
    columns = [name for name in fitted if name.startswith("logit_")]
    assert len(columns) == 7
    assert (fitted[columns] - scored[columns]).abs().to_numpy().max() < 1e-4
    validation = json.loads((project.folder / "metrics/validation.json").read_text())
    report = json.loads((project.folder / "metrics/report.json").read_text())["test"]["validation"]
    assert validation["balanced_accuracy"] == pytest.approx(report["balanced_accuracy"], abs=1e-6)


def test_a_second_run_does_nothing(project):
    assert "Data and pipelines are up to date" in project.run("dvc", "repro").stdout


def test_a_fresh_clone_shows_results_and_knows_it_is_up_to_date(project, tmp_path):
    project.run("git", "clone", "-q", ".", str(tmp_path / "fresh"))
    fresh = Project(tmp_path / "fresh")
    assert "up to date" in fresh.run("dvc", "repro", "--dry", "--allow-missing").stdout
    assert "balanced_accuracy" in fresh.run("dvc", "metrics", "show").stdout
    page = fresh.run("dvc", "plots", "show").stdout.strip().splitlines()[-1]
    assert page.endswith("index.html")
    shown = (fresh.folder / "dvc_plots/index.html").read_text()
    for title in ("ROC curves", "Confusion matrix", "Loss while training", "Reliability"):
        assert title in shown


def test_two_clean_clones_give_the_same_bytes_with_other_workers(project, tmp_path):
    project.run("git", "clone", "-q", ".", str(tmp_path / "twin"))
    twin = Project(tmp_path / "twin")
    content = yaml.safe_load((twin.folder / "params.yaml").read_text())
    content["machine"] |= {"workers": 2, "decoders": 2}
    (twin.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    ran = twin.run("dvc", "repro").stdout
    assert ran.count("Running stage") == len(STAGES)
    ours, theirs = project.bytes_of(*RESULTS), twin.bytes_of(*RESULTS)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


WHOLE_CHAIN = (
    ({"evaluate__seed": 5}, ["evaluate"]),
    ({"evaluate__seed": 5, "train__lr": 0.002}, ["train", "ood", "calibrate", "evaluate", "explain"]),
    ({"evaluate__seed": 5, "train__lr": 0.002, "explain__seed": 3}, ["explain"]),
)


@pytest.mark.parametrize(
    "changes",
    [(({"explain__seed": 3}, ["explain"]),), pytest.param(WHOLE_CHAIN, marks=pytest.mark.sweep)],
    ids=["explain", "whole chain"],
)
def test_a_change_runs_only_what_it_must(project, edit, changes):
    for keys, stages in changes:
        edit(**keys)
        assert stages_run(project) == stages
        assert stages_run(project) == []
    back_to_the_commit(project)


@pytest.mark.parametrize(
    ("keys", "stages"),
    [
        ({"split__seed": 5}, ["split"]),
        ({"task": "melanoma"}, ["split", "train", "ood", "evaluate"]),
        ({"model__name": "timm"}, ["features", "train", "ood", "evaluate", "explain"]),
        ({"model__probe__head": "knn"}, []),
        ({"calibration__abstain_share": 0.2}, ["calibrate"]),
        ({"ood__quantile": 0.9}, ["calibrate"]),
        ({"ood__method": "mahalanobis"}, ["ood"]),
        ({"evaluate__tta": "flips"}, ["evaluate"]),
        ({"prepare__image_size": 48}, ["prepare", "external"]),
        ({"data__seed": 5}, ["download"]),
        ({"model__timm__dropout": 0.5}, []),
        ({"machine__workers": 3}, []),
    ],
)
def test_a_key_is_read_by_these_stages_and_no_other(project, edit, keys, stages):
    edit(**keys)
    assert stages_run(project, "--dry") == stages


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("models/architectures/timm.py", []),  # not in use
        ("probing/fit.py", ["train"]),
        ("probing/encoders.py", ["features", "train"]),
        ("data/sources/isic.py", ["download", "prepare", "external"]),  # `data.source` may name any of them
        ("data/sources/synthetic.py", ["download", "prepare", "external"]),
        ("evaluation/calibrate.py", ["calibrate"]),
        ("ood/scores.py", ["ood", "calibrate", "evaluate"]),
        ("evaluation/metrics/catalogue.py", ["evaluate"]),  # a metric more
        ("evaluation/metrics/confusion.py", ["evaluate"]),
        ("evaluation/metrics/bootstrap.py", ["evaluate"]),
        ("evaluation/plots/classification.py", ["evaluate"]),
        ("evaluation/report/model_card.py", ["evaluate"]),
        ("evaluation/compare/compare.py", []),
        ("evaluation/standalone/dataset.py", []),
        ("evaluation/validation.py", ["train", "calibrate", "evaluate", "explain"]),  # what training selects on
        ("evaluation/plots/class_counts.py", ["prepare", "evaluate"]),
        ("data/splits.py", ["split"]),
        ("explain/maps.py", ["explain"]),
        ("serving/predictor.py", []),
        ("cli/main.py", []),
        ("system.py", []),
    ],
)
def test_an_edited_file_re_runs_what_computes_with_it_and_nothing_else(project, file, stages):
    path = project.folder / "exp_tools" / file
    before = path.read_text()
    path.write_text(before + "\n# a remark\n")
    try:
        changed = json.loads(project.run("dvc", "status", "--json").stdout)
    finally:
        path.write_text(before)
    assert [name for name in STAGES if any("changed deps" in str(found) for found in changed.get(name, []))] == stages


@pytest.mark.sweep
@pytest.mark.parametrize(
    "what",
    [["calibrate"], ["-f", "-S", "data.sample_images=70", "-S", "prepare.clahe=true"]],
    ids=["as far as the model", "all stages"],
)
def test_a_queued_run_uses_the_code_of_the_moment_it_was_queued(project, what):
    mine = project.folder / "data/raw/mine.jpg"
    mine.write_bytes(b"a file of the user's, who keeps it in the wrong place")
    project.run("dvc", "exp", "run", "--queue", "-n", "queued", "-S", "train.lr=0.004", *what)
    path = project.folder / "exp_tools/training/trainer.py"
    before = path.read_text()
    path.write_text("raise SystemExit('the edited workspace ran')\n")
    try:
        ran = project.run("dvc", "exp", "run", "--run-all")
    finally:
        path.write_text(before)
    assert "edited workspace" not in ran.stdout + ran.stderr
    shown = pd.read_csv(_as_file(project.run("dvc", "exp", "show", "--csv").stdout))
    queued = shown[shown["Experiment"] == "queued"]
    assert queued["train.lr"].tolist() == [0.004]
    assert queued.filter(like="balanced_accuracy").notna().all(axis=None)
    model = project.folder / "models/model.safetensors"
    committed = model.read_bytes()
    project.run("dvc", "exp", "apply", "queued")
    assert model.read_bytes() != committed
    assert mine.read_bytes().startswith(b"a file of the user's")
    mine.unlink()
    back_to_the_commit(project)


def _as_file(text: str):
    from io import StringIO

    return StringIO(text)


def test_push_and_pull_bring_the_result_without_training(project, tmp_path):
    remote, second = tmp_path / "remote", tmp_path / "second"
    project.run("dvc", "remote", "add", "--local", "-d", "-f", "store", str(remote))
    project.run("dvc", "push")
    project.run("git", "clone", "-q", ".", str(second))
    other = Project(second)
    other.run("dvc", "remote", "add", "--local", "-d", "store", str(remote))
    other.run("dvc", "pull", "--allow-missing")
    wanted = ("models/model.safetensors", "data/predictions.csv", "plots/figures/*.png", "data/prepared/images.npy")
    assert other.bytes_of(*wanted) == project.bytes_of(*wanted)
    assert "up to date" in other.run("dvc", "repro", "--dry", "--allow-missing").stdout


def test_wrong_parameters_stop_before_anything_runs(project):
    done = project.run("dvc", "exp", "run", "-S", "train.lr=-1", check=False)
    assert done.returncode != 0
    assert "train.lr is -1; it should be greater than 0" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    back_to_the_commit(project)


def test_a_stage_says_what_is_wrong_with_the_data_and_leaves_nothing_half_written(tmp_path):
    project = clone(tmp_path / "own", TINY)
    project.run("python", "-m", "stages.download")
    images = sorted((project.folder / "data/raw").rglob("*.jpg"))
    images[3].write_bytes(images[3].read_bytes()[:500])
    images[5].unlink()
    table = project.folder / "data/raw/HAM10000_metadata.csv"
    for expected in (f"no image file for {images[5].stem!r}", f"{images[3].name}, row"):
        done = project.run("python", "-m", "stages.prepare", check=False)
        assert done.returncode == 1
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert [path.name for path in (project.folder / "data/prepared").iterdir()] == ["problems.csv"]
        rows = table.read_text().splitlines()
        table.write_text("\n".join(row for row in rows if images[5].stem not in row) + "\n")


@pytest.mark.parametrize("target", [["prepare"], pytest.param([], marks=pytest.mark.sweep)], ids=["prepare", "whole"])
def test_a_local_copy_is_linked_and_never_touched(tmp_path, target):
    project = clone(tmp_path / "own", TINY)
    project.run("python", "-m", "stages.download")
    mine = tmp_path / "my copy"
    shutil.copytree(project.folder / "data/raw", mine)
    before = {path: (path.read_bytes(), path.stat().st_mode) for path in mine.rglob("*") if path.is_file()}
    changes = ["-S", "data.source=ham10000", "-S", f"data.dir={mine}", "-S", "data.limit=40"]
    project.run("dvc", "exp", "run", *changes, *target)
    linked = list((project.folder / "data/raw").rglob("*.jpg"))
    assert 30 <= len(linked) <= 40
    assert all(path.is_symlink() for path in linked)
    assert {path: (path.read_bytes(), path.stat().st_mode) for path in before} == before
    read = "data/prepared/labels.csv" if target else "data/predictions.csv"
    assert set(pd.read_csv(project.folder / read)["source"]) == {"ham10000"}


@pytest.mark.sweep
def test_an_encoder_more_is_the_only_one_that_is_computed(project):
    content = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))
    words = "model.probe.encoders=[{backbone:test_resnet,weights:none}%s]"

    def run(*changes: str) -> str:
        return project.run("dvc", "exp", "run", "-S", "model.name=probe", *changes, "train").stdout

    first = run("-S", words % "")
    assert "Running stage 'features'" in first
    assert "test_resnet" in first
    more = run("-S", words % ",{backbone:test_vit,weights:none}")
    assert next(line.rsplit(", ", 1)[1] for line in more.splitlines() if "data/features/" in line) == "kept"
    assert "Running stage 'features'" not in run("-S", "model.probe.head=knn")
    assert content["model"]["name"] != "probe"
    back_to_the_commit(project)
