"""What studies and ensembles write is theirs and whole, and what they ask of DVC and of their members is said."""

import subprocess

import pandas as pd
import pytest
import yaml
from helpers.models import write_model
from helpers.project import ROOT

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import ID_COLUMNS
from exp_tools.models.model_file import read_facts
from exp_tools.params import PARAMS_FILE
from exp_tools.studies import ensemble, members, result, run
from exp_tools.studies.members import Standing
from exp_tools.studies.plan import read_study

TWO = {"settings": {"plain": {}, "smooth": {"set": {"train.label_smoothing": 0.1}}}, "seeds": [0]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project's parameters and the study `two`, of which nothing has run."""
    (tmp_path / PARAMS_FILE).write_bytes((ROOT / PARAMS_FILE).read_bytes())
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/two.yaml").write_text(yaml.safe_dump(TWO), encoding="utf-8")
    for module in (members, run):
        monkeypatch.setattr(module, "standing", missing)
    monkeypatch.setattr(run, "WAIT", 0)
    monkeypatch.setattr(run, "LOOK", 0.05)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def missing(study, members):
    return {member.name: Standing("missing") for member in members}


def read(root):
    return read_study(root / "studies/two.yaml", root)


def test_a_job_array_replaces_itself_and_no_script_of_the_users(root, monkeypatch, capsys):
    monkeypatch.setattr(run, "require_data", lambda root: None)
    mine = root / "my script.sh"
    mine.write_text("#!/bin/bash\necho mine\n")
    assert main(["study", "studies/two.yaml", "--slurm", str(mine)]) == 1
    assert "this command did not write it" in capsys.readouterr().err
    assert mine.read_text() == "#!/bin/bash\necho mine\n"
    monkeypatch.chdir(root / "studies")  # where `sbatch` is called makes no difference to the logs
    for _ in range(2):
        assert main(["study", "two.yaml", "--slurm", str(root / "an array.sh")]) == 0
        assert f"sbatch '{root}/an array.sh'" in capsys.readouterr().out
    assert f"--output={root}/runs/studies/two/slurm-%a.log\n" in (root / "an array.sh").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """No comparison is computed."""
    monkeypatch.setattr(result, "write_comparison", lambda prefix, found: None)
    monkeypatch.setattr(
        result, "as_latex", lambda found: "% Scores on val, 95 % intervals by lesion; differences from x"
    )


def test_with_the_copy_of_its_file_the_study_is_the_same(root, drawn):
    study = read(root)
    result.write_study(study, missing(study, study.members), {})
    copy = study.folder / "two.yaml"
    assert "[two.yaml](two.yaml)" in (study.folder / "README.md").read_text(encoding="utf-8")
    again = read_study(copy, root)
    assert (again.name, again.folder, again.members) == (study.name, study.folder, study.members)
    before = copy.read_bytes()
    result.write_study(again, missing(again, again.members), {})
    assert copy.read_bytes() == before
    elsewhere = root / "two.yaml"
    elsewhere.write_bytes(before)
    moved = read_study(elsewhere, root)
    result.write_study(moved, missing(moved, moved.members), {})
    assert copy.read_bytes() == before


@pytest.mark.parametrize("name", ["comparison.tex", "two.yaml", "members.csv"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_study_replaces_its_own_results_alone(root, drawn, monkeypatch, capsys, name, kind):
    monkeypatch.setattr(run, "run_study", lambda study, **how: missing(study, study.members))
    monkeypatch.setattr(result, "compare_study", lambda study, now: {})
    monkeypatch.setattr("exp_tools.evaluation.compare.render.as_text", lambda found: "")
    (root / "mine").write_text("settings: {}\n")
    out = root / "studies/two" / name
    out.parent.mkdir()
    if kind == "file":
        out.write_text("settings: {}\n")
    else:
        out.symlink_to(root / "mine")
    assert main(["study", "studies/two.yaml"]) == 1
    assert f"{name} " in capsys.readouterr().err
    assert out.read_text() == "settings: {}\n"
    out.unlink()
    for file in ("studies/two.yaml", "studies/two.yaml", "studies/two/two.yaml"):
        main(["study", file])
        assert "written: studies/two/README.md" in capsys.readouterr().out


class FakeDvc:
    """In place of `dvc repro --dry`: it answers in turn."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, root, *command):
        status, out, error = self.answers.pop(0)
        return subprocess.CompletedProcess(command, status, out, error)


BUSY = (255, "", "ERROR: Unable to acquire lock. Most likely another DVC process is running\n")


def test_while_dvc_is_busy_the_images_are_not_called_old(root, monkeypatch):
    monkeypatch.setattr(run, "_quietly", FakeDvc(BUSY, BUSY, (0, "Data and pipelines are up to date.", "")))
    run.require_data(root)
    monkeypatch.setattr(run, "_quietly", FakeDvc(*[BUSY] * run.TRIES))
    with pytest.raises(UserError, match=r"cannot say.*: ERROR: Unable to acquire lock"):
        run.require_data(root)
    broken = FakeDvc((255, "", "ERROR: 'dvc.yaml' is invalid.\n\nHaving any troubles?\n"))
    monkeypatch.setattr(run, "_quietly", broken)
    with pytest.raises(UserError, match=r"cannot say.*: ERROR: 'dvc\.yaml' is invalid\.") as error:
        run.require_data(root)
    assert "not up to date" not in str(error.value)


def test_a_member_alone_looks_at_the_images_too(root, monkeypatch):
    study = read(root)
    monkeypatch.setattr(run, "_quietly", FakeDvc((0, "Stage 'prepare' would run", "")))
    monkeypatch.setattr(run, "_dvc", lambda *given: pytest.fail("it ran"))
    with pytest.raises(UserError, match="not up to date"):
        run.run_member(study, study.members[0])


def test_a_member_that_cannot_begin_says_why(root, monkeypatch):
    monkeypatch.setattr(run, "require_data", lambda root: None)
    python = root / "python"
    python.write_text('#!/bin/sh\n[ -n "${6##*smooth*}" ] && echo "error: no room" >&2\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(run.sys, "executable", str(python))
    said = []
    now = run.run_study(read(root), jobs=2, say=said.append)
    assert {name: (one.state, one.reason) for name, one in now.items()} == {
        "two-plain-seed0": ("missing", "its process ended with status 3: error: no room"),
        "two-smooth-seed0": ("missing", "its process ended with status 3"),
    }
    assert any("two-plain-seed0: missing: its process ended with status 3: error: no room" in line for line in said)


def test_one_model_under_two_names_is_no_ensemble(root, monkeypatch):
    for name, kind in (("a", "timm"), ("b", "timm"), ("c", "soft_attention")):
        write_model(root / f"{name}.safetensors", kind)
    monkeypatch.setattr(ensemble, "find_version", lambda root, word: word)
    monkeypatch.setattr(ensemble, "fetch_model", lambda root, word, model, cache: root / f"{word}.safetensors")
    assert len(ensemble.member_files(["a", "c"], root, root)) == 2
    with pytest.raises(UserError, match="b and a have the same model file"):
        ensemble.member_files(["a", "c", "b"], root, root)
    with pytest.raises(UserError, match="there is no model file"):
        ensemble.member_files(["a", "d"], root, root)


def test_an_ensemble_is_written_whole_and_over_no_other_table(root, monkeypatch, capsys):
    table = pd.DataFrame([["a", "a", "val", "mel"]], columns=["image_id", "lesion_id", "split", "dx"])

    def make(words, out, root, params, cache):
        write_model(out)
        facts = read_facts(out)
        facts.training.update(members=[1, 2], validation={"balanced_accuracy": 0.5})
        return ensemble.Made(facts, 1, table, table)

    monkeypatch.setattr(ensemble, "make_ensemble", make)
    command = ["ensemble", "a", "b", "--out", "models/both.safetensors"]
    assert main(command) == 1  # there is no label table for the card
    capsys.readouterr()
    assert list((root / "models").iterdir()) == []
    monkeypatch.setattr(ensemble, "card_of", lambda made, files, labels, params: f"card of {files}")
    users = ",".join(ID_COLUMNS) + ",prob_mel\n"
    (root / "models/both.csv").write_text(users)
    assert main(command) == 1
    assert "both.csv exists, and this command did not write it" in capsys.readouterr().err
    assert (root / "models/both.csv").read_text() == users
    (root / "models/both.csv").unlink()
    assert main(command) == 0
    assert {path.name for path in (root / "models").iterdir()} == {"both.safetensors", "both.csv", "both.md"}
    assert "card of {'models/both.safetensors': " in (root / "models/both.md").read_text()
