"""A study file: its members, and every fault of it in one line before anything runs."""

import shutil

import pytest
import yaml
from helpers.project import ROOT

from exp_tools.errors import UserError
from exp_tools.evaluation import made_with
from exp_tools.studies import tune
from exp_tools.studies.plan import needs_data_stages, read_study
from exp_tools.studies.run import DATA_STAGES, OWN_STAGES

GOOD = {
    "common": {"recipe": "emas", "set": {"train.epochs": 3}},
    "settings": {"plain": {}, "smooth": {"set": {"train.label_smoothing": 0.1}}},
    "seeds": [0, 7],
}


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


def read(root, content, name="mine.yaml"):
    (root / name).write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8"
    )
    return read_study(root / name, root)


def test_members_are_settings_x_seeds_with_names_that_stay(root):
    study = read(root, GOOD)
    assert [member.name for member in study.members] == [
        "mine-plain-seed0",
        "mine-plain-seed7",
        "mine-smooth-seed0",
        "mine-smooth-seed7",
    ]
    last = study.members[-1]
    assert (last.params.train.seed, last.params.train.label_smoothing, last.params.train.epochs) == (7, 0.1, 3)
    assert last.params.model.name == "emas"
    assert last.words[:2] == ("-S", "task=diagnosis")
    assert last.words[-2:] == ("-S", "train.seed=7")
    assert study.baseline == "plain"
    assert study.folder == root / "studies/mine"


def test_folds_are_members_too(root):
    study = read(root, GOOD | {"folds": 3, "seeds": [1]})
    assert [member.name for member in study.members][:3] == [f"mine-plain-seed1-fold{fold}" for fold in range(3)]
    assert [member.params.split.fold for member in study.members] == [0, 1, 2] * 2
    assert {member.params.split.scheme for member in study.members} == {"kfold"}
    assert {member.params.split.folds for member in study.members} == {3}


def test_who_has_the_images_of_the_workspace_does_not_make_them(root):
    study = read(root, {"settings": {"same": {}, "larger": {"set": {"prepare.image_size": 128}}}, "seeds": [0]})
    assert [needs_data_stages(member.params, study.now) for member in study.members] == [False, True]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {}}, "settings"),
        ({"seed": [0]}, "seed is unknown.*did you mean 'seeds'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0, 0]}, "named twice"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"folds": 1}, "folds is 1"),
        ({"baseline": "plane"}, "baseline 'plane' is no setting.*'plain'"),
        ({"primary": "macro_auk"}, "no metric 'macro_auk'.*macro_auc"),
        ({"metrics": ["sensitivty:mel"]}, "no metric 'sensitivty:mel'.*sensitivity"),
        ({"split": "tset"}, "split is 'tset'"),
        ({"settings": {"a b": {}}}, "'a b' needs another name"),
        ({"settings": {"a": {"recipe": "emass"}}}, "a: no recipe 'emass'.*emas"),
        ({"settings": {"a": {"set": {"train.epoch": 1}}}}, "a: .*train.epoch is unknown.*epochs"),
        ({"settings": {"a": {"set": {"train.lr": "fast"}}}}, "a: .*train.lr"),
        ({"settings": {"a": {"sett": {}}}}, "settings.a.sett is unknown.*did you mean 'set'"),
        ({"settings": {"a": {"set": {"train.seed": 1}}}}, "a sets train.seed.*`seeds:`"),
        ({"settings": {"a": {"set": {"split.fold": 1}}}}, "a sets split.fold.*`folds:`"),
        ({"settings": {"a": {}, "b": {}}}, "b and a are the same setting"),
        ({"settings": {"a" * 60: {}}}, "over 64 characters"),
    ],
)
def test_a_fault_is_one_line_that_names_the_file(root, change, said):
    with pytest.raises(UserError, match=f"(?s)mine.yaml.*{said}"):
        read(root, GOOD | change)


def test_files_that_are_no_study(root):
    with pytest.raises(UserError, match="not valid YAML"):
        read(root, "settings: [")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        read(root, "- a list")
    with pytest.raises(UserError, match="letters, digits"):
        read(root, GOOD, "my study.yaml")
    (root / "studies").mkdir()
    read(root, GOOD, "studies/attention.yaml")
    with pytest.raises(UserError, match="did you mean 'attention'"):
        read_study(root / "studies/atention.yaml", root)


@pytest.mark.parametrize(
    "file",
    [file for file in sorted((ROOT / "studies").glob("*.yaml")) if file.stem != "search"],
    ids=lambda file: file.stem,
)
def test_ready_studies_can_run_here(file):
    study = read_study(file, ROOT)
    assert len(study.content.settings) >= 2
    assert study.content.split == "val"


def test_members_and_trials_run_every_stage_behind_the_images():
    stages = list(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    own = [name for name in stages if name not in (*DATA_STAGES, "explain")]
    assert list(OWN_STAGES) == own
    assert list(tune.STAGES) == ["--single-item", *own[: own.index("evaluate")]]
    assert list(made_with.STAGES) == [*DATA_STAGES, *own]
