"""`exp-tools tune`: it reads validation alone, gives up what is behind, and loses no trial to a kill."""

import shutil
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import yaml
from helpers.project import ROOT

from exp_tools.errors import UserError
from exp_tools.project import RUNS_FOLDER
from exp_tools.studies import tune
from exp_tools.studies.search_result import _shell, write_search
from exp_tools.studies.space import read_space

optuna = pytest.importorskip("optuna")

COMMAND = ("python", "-m", "exp_tools.cli", "tune", "studies/lr.yaml")
SPACE = {
    "common": {"set": {"train.epochs": 2}},
    "space": {
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.batch_size": {"low": 8, "high": 16, "step": 8},
    },
}
LOG = """\
training timm on 1 x cpu in fp32, 1 threads each
epoch 1/3: train loss 1.893; validation loss 1.735, macro auc {0}, balanced accuracy 0.357 (best); 178 images/s
epoch 2/3: train loss 1.588; validation loss 3.246, macro auc {1}, balanced accuracy 0.161 (best); 180 images/s
"""


@pytest.fixture
def root(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


def read(root, content, name="lr.yaml"):
    (root / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return read_space(root / name, root)


class FakeDvc:
    """In place of DVC: a process that wrote a log and ended."""

    def __init__(self, root, name, words, log, *, scores, says=LOG, status=0):
        self.name, self.words, self.status, self.stopped = name, words, status, False
        log.write_text(says, encoding="utf-8")
        scores[name] = words

    def poll(self):
        return self.status


@pytest.fixture
def dvc(monkeypatch):
    """Names of the experiments that were begun, in order, with their words; each scores what its rate says."""
    begun: dict[str, list[str]] = {}
    monkeypatch.setattr(tune, "LOOK", 0)
    monkeypatch.setattr(tune, "WAIT", 0)
    monkeypatch.setattr(tune, "require_data", lambda root: None)
    monkeypatch.setattr(tune, "start_dvc", lambda *given: FakeDvc(*given, scores=begun))
    monkeypatch.setattr(tune, "_scores", lambda space, name: [rate_of(begun[name])])
    return begun


def rate_of(words: list[str]) -> float:
    return float(next(word for word in words if word.startswith("train.lr=")).partition("=")[2])


def run(space, **how):
    how = {"trials": 6, "jobs": 1, "say": lambda line: None} | how
    return tune.run_search(space, **how)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {}}, "space"),
        ({"space": {"train.lr": {"low": 1.0, "high": 0.1}}}, "low must be less"),
        ({"space": {"train.lr": {"low": 0.0, "high": 0.1, "log": True}}}, "low above 0"),
        ({"space": {"train.lr": {"low": 0.01, "high": 0.1, "log": True, "step": 0.1}}}, "do not go together"),
        ({"space": {"train.lr": [0.1]}}, "at least 2"),
        ({"space": {"train.lrr": [0.1, 0.2]}}, "train.lrr.*lr"),
        ({"space": {"train.lr": {"low": -1.0, "high": 0.1}}}, r"train.lr = -1.0: .*train.lr"),
        ({"space": {"train.epochs": [1, 2]}}, "in common.set and in space"),
        ({"score": "macro_auk"}, "no score 'macro_auk'.*macro_auc"),
        ({"scoring": "macro_auc"}, "scoring is unknown.*did you mean 'score'"),
    ],
)
def test_a_fault_of_the_space_is_one_line(root, change, said):
    with pytest.raises(UserError, match=f"(?s)lr.yaml.*{said}"):
        read(root, SPACE | change)


def test_it_runs_so_many_trials_goes_on_and_finds_what_is_better(root, dvc):
    space = read(root, SPACE)
    search = run(space)
    assert list(dvc) == [f"lr-trial{number:03d}" for number in range(6)]
    assert {word for words in dvc.values() for word in words if "batch" in word} == {
        "train.batch_size=8",
        "train.batch_size=16",
    }
    assert all(words[-len(tune.STAGES) :] == list(tune.STAGES) for words in dvc.values())  # which do not evaluate
    run(space, trials=25)
    assert len(dvc) == 25
    assert max(map(rate_of, list(dvc.values())[6:])) > max(map(rate_of, list(dvc.values())[:6]))
    table = tune.table_of(tune.open_search(space))
    assert table["state"].eq("complete").all()
    assert table["macro_auc"].max() == pytest.approx(search.best_value) or table["macro_auc"].max() > search.best_value
    run(space, trials=25)
    assert len(dvc) == 25


def test_the_same_seed_proposes_the_same(root, dvc):
    run(read(root, SPACE, "one.yaml"))
    run(read(root, SPACE, "two.yaml"))
    rates = list(map(rate_of, dvc.values()))
    assert rates[:6] == rates[6:]
    run(read(root, SPACE | {"seed": 1}, "three.yaml"))
    assert list(map(rate_of, dvc.values()))[12:] != rates[:6]


def test_what_is_behind_the_others_is_given_up(root, dvc, monkeypatch):
    stopped, state = [], root / RUNS_FOLDER / ("0a" * 8)
    state.mkdir(parents=True)
    (state / "state.pt").touch()

    def stop(process):
        stopped.append(process.name)
        log = root / RUNS_FOLDER / "studies/lr" / f"{process.name}.log"
        log.write_text(
            log.read_text() + f"stopped after epoch 3, step 1; the state is saved in {state}, and the same\n"
        )

    monkeypatch.setattr(tune, "stop_dvc", stop)

    def start(root, name, words, log):
        late = name.endswith("007")
        says = LOG.format(*["0.500" if late else "0.900"] * 2).replace("epoch 2/3", "epoch 3/3")
        return FakeDvc(root, name, words, log, scores=dvc, says=says, status=None if late else 0)

    monkeypatch.setattr(tune, "start_dvc", start)
    said = []
    search = run(read(root, SPACE), trials=8, say=said.append)
    assert stopped == ["lr-trial007"]
    assert said[-1] == "lr-trial007: given up after epoch 3"
    assert search.trials[7].state.name == "PRUNED"
    assert not state.exists()  # nothing would resume it
    write_search(read(root, SPACE), search)
    assert "-S evaluate.trials=8" in (root / "studies/lr/README.md").read_text(encoding="utf-8")


def test_epochs_are_read_from_the_log(root, dvc, monkeypatch):
    space = read(root, SPACE)
    search = tune.open_search(space)
    begun = tune._begin(space, search, 9)
    tune._report_epochs(space, begun, LOG.format("0.642", "0.696"))
    assert search.trials[0].intermediate_values == {1: 0.642, 2: 0.696}
    begun.lock.release()


def test_a_trial_whose_process_was_killed_is_run_again_with_its_values(root, dvc):
    space = read(root, SPACE)
    search = tune.open_search(space)
    killed = tune._begin(space, search, 9)
    rate = killed.trial.params["train.lr"]
    run(space, trials=2)  # the lock is held: its process is at work
    assert rate not in [rate_of(words) for words in dvc.values()]
    killed.lock.release()
    search = run(space, trials=4)
    assert rate in [rate_of(words) for words in dvc.values()]
    states = [trial.state.name for trial in search.trials]
    assert states.count("COMPLETE") == 4
    assert states.count("FAIL") == 1


def choices(root, **more):
    return read(root, {"space": {"train.epochs": [8, 3], "train.frozen_epochs": [0, 5]}} | more)


def test_values_that_do_not_combine_fail_with_the_reason_and_the_search_goes_on(root, dvc, monkeypatch):
    monkeypatch.setattr(tune, "_scores", lambda space, name: [0.5])
    space = choices(root)
    search = tune.open_search(space)
    for _ in range(2):
        search.enqueue_trial({"train.epochs": 3, "train.frozen_epochs": 5})
    assert run(space, trials=2).best_trials == []  # where all fail so it ends
    assert not dvc
    table = tune.table_of(run(space, trials=8))
    possible = (table["train.epochs"] == 8) | (table["train.frozen_epochs"] == 0)
    assert len(table) == 8
    assert table["state"].eq("complete").equals(possible)
    assert table.loc[~possible, "reason"].str.contains("frozen_epochs").all()


def test_an_error_stops_the_trainings(root, dvc, monkeypatch):
    begun = []

    def start(*given):
        if begun:
            raise RuntimeError("a fault")
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True))
        given[-1].touch()
        return begun[0]

    monkeypatch.setattr(tune, "start_dvc", start)
    with pytest.raises(RuntimeError, match="a fault"):
        run(read(root, SPACE), jobs=2)
    still = begun[0].poll() is None
    begun[0].kill()
    assert not still


def test_who_begins_meanwhile_takes_no_trial_of_another(root, dvc):
    space = read(root, SPACE)
    search, other = tune.open_search(space), tune.open_search(space)
    ask, meanwhile = search.ask, []

    def slow(*given):
        trial = ask(*given)
        meanwhile.append(threading.Thread(target=lambda: meanwhile.append(tune._begin(space, other, 9))))
        meanwhile[0].start()
        meanwhile[0].join(timeout=0.3)
        return trial

    search.ask = slow
    first = tune._begin(space, search, 9)
    meanwhile[0].join()
    second = meanwhile[1]
    search.tell(first.trial, 0.5)
    assert [trial.state.name for trial in search.trials] == ["COMPLETE", "RUNNING"]
    rates = {one.trial.params["train.lr"] for one in (first, second)}
    assert len(rates) == 2
    assert tune._begin(space, search, 2) is None  # the other's trial counts


def test_other_choices_need_another_name(root, dvc):
    run(
        read(root, {"space": {"train.loss": ["cross_entropy", "focal"], "train.lr": SPACE["space"]["train.lr"]}}),
        trials=1,
    )
    for key, other in [("train.loss", ["focal", "cross_entropy"]), ("train.lr", {"low": 0.0001, "high": 0.1})]:
        space = read(root, {"space": {key: other}})
        with pytest.raises(UserError, match=f"lr.yaml: .*other choices for {key}.*give the file another name"):
            run(space)
    wider = {"train.lr": {"low": 1e-5, "high": 0.1, "log": True}, "train.batch_size": [8, 16]}
    assert len(run(read(root, {"space": wider}), trials=2).trials) == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="the command is for bash")
def test_the_command_for_the_best_has_its_words_in_bash(root):
    words = ["-S", "train.class_weights={mel:5.0,nv:2.0}", "-S", "ood.layers=[1,2]"]
    said = subprocess.run(["bash", "-c", f"printf '%s\n' {_shell(words)}"], capture_output=True, text=True).stdout
    assert said.splitlines() == words


def test_what_failed_has_its_reason_and_what_is_busy_is_tried_again(root, dvc, monkeypatch):
    tries = []

    def start(root, name, words, log):
        tries.append(name)
        busy = len(tries) == 1
        says = "ERROR: Unable to acquire lock" if busy else "error: no GPU is here"
        return FakeDvc(root, name, words, log, scores=dvc, says=says, status=1)

    monkeypatch.setattr(tune, "start_dvc", start)
    search = run(read(root, SPACE), trials=2)
    assert tries == ["lr-trial000", "lr-trial000", "lr-trial001"]
    assert tune.table_of(search)["reason"].tolist() == ["error: no GPU is here"] * 2


def test_two_scores_have_a_front_and_other_scores_are_refused(root, dvc, monkeypatch):
    monkeypatch.setattr(tune, "_scores", lambda space, name: [rate_of(dvc[name]), -rate_of(dvc[name])])
    space = read(root, SPACE | {"score": ["macro_auc", "balanced_accuracy"]})
    search = run(space)
    assert len(search.best_trials) == 6
    assert {"macro_auc", "balanced_accuracy"} <= set(tune.table_of(search))
    with pytest.raises(UserError, match="begun with macro_auc and balanced_accuracy"):
        tune.open_search(read(root, SPACE))


def test_without_optuna_it_says_what_to_install(root, monkeypatch):
    monkeypatch.setattr(tune, "optuna", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[tune\]'"):
        run(read(root, SPACE))


@pytest.mark.sweep
def test_in_a_project_it_ends_with_the_best_and_never_evaluates(ran_project, tmp_path):
    project = ran_project.copy(tmp_path / "project")
    space = {"common": {"set": {"train.epochs": 2}}, "space": SPACE["space"]}
    (project.folder / "studies/lr.yaml").write_text(yaml.safe_dump(space, sort_keys=False), encoding="utf-8")
    done = project.run(*COMMAND, "--trials", "2", "-j", "2")
    assert "best: trial" in done.stdout
    folder = project.folder / "studies/lr"
    table = pd.read_csv(folder / "trials.csv")
    assert table["state"].tolist() == ["complete"] * 2
    assert {path.name for path in folder.iterdir()} >= {"README.md", "trials.csv", "history.png"}
    assert "the test split was not\nread" in (folder / "README.md").read_text(encoding="utf-8")
    refused = project.run("exp-tools", "compare", "main", "lr-trial000", "--split", "test", check=False)
    assert "of an earlier model than its own" in refused.stderr
    start = time.monotonic()
    again = project.run(*COMMAND, "--trials", "2")
    assert "best: trial" in again.stdout
    assert time.monotonic() - start < 60
    assert (project.folder / RUNS_FOLDER / "studies/lr/optuna.db").is_file()
