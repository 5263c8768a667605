"""`exp-tools ensemble --soup`: the mean of weights, taken only where validation is no worse."""

import numpy as np
import pytest
import torch
import yaml

from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import as_arrays, read_predictions
from exp_tools.models.model_file import ModelFacts, read_facts
from exp_tools.models.registry import load_model
from exp_tools.studies.ensemble import check_alike
from exp_tools.studies.soup import greedy, mean_of

STAGES = ("--single-item", "train", "ood", "calibrate", "evaluate")
COMMAND = ("python", "-m", "exp_tools.cli", "ensemble", "--soup")


def test_the_mean_is_that_of_the_numbers_and_counts_are_those_of_the_first():
    members = [{"w": torch.tensor([value, 2.0]), "seen": torch.tensor(int(value))} for value in (1.0, 2.0, 6.0)]
    found = mean_of(members)
    assert found["w"].tolist() == [3.0, 2.0]
    assert found["w"].dtype == torch.float32
    assert found["seen"].item() == 1


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ([1.0, -1.0, 9.0], [0, 1]),  # 1 and -1 cancel, 9 spoils it
        ([0.5, 9.0, 9.0], [0]),
        ([3.0, 0.2, 0.1], [2, 1]),
        ([2.0, 2.0], [0, 1]),  # as good is good enough
    ],
)
def test_a_member_joins_where_validation_is_no_worse(weights, chosen):
    def score(found):
        return -abs(found["w"].item() - 0.15 * (weights[0] == 3.0))

    members = [{"w": torch.tensor(value)} for value in weights]
    found, best = greedy(members, [score(one) for one in members], score)
    assert found == chosen
    assert best == pytest.approx(score(mean_of([members[place] for place in chosen])))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "emas"}, "architectures"),
        ({"knobs": {"dropout": 0.5}}, "settings"),
        ({"training": {"md5_labels": "a", "md5_splits": "c"}}, "different splits"),
        ({"training": {"md5_labels": "d", "md5_splits": "b"}}, "label tables"),
        ({"training": {"ensemble_of": "seeds"}}, "an ensemble already"),
    ],
)
def test_what_cannot_be_averaged_is_named(change, said):
    given = {
        "architecture": "timm",
        "knobs": {"dropout": 0.1},
        "task": "diagnosis",
        "classes": ["mel", "nv"],
        "preprocessing": {"image_size": 32, "resize": "crop"},
        "pixel_mean": [0.5] * 3,
        "pixel_std": [0.5] * 3,
        "source": "ham10000",
        "training": {"md5_labels": "a", "md5_splits": "b"},
    }
    with pytest.raises(UserError, match=f"two.*{said}"):
        check_alike(["one", "two"], [ModelFacts(**given), ModelFacts(**given | change)], of_one_network=True)


@pytest.mark.sweep
def test_in_a_project_it_is_one_network_or_nothing(ran_project, tmp_path):
    project = ran_project.copy(tmp_path / "project")
    root = project.folder
    project.run("dvc", "exp", "run", "--temp", "-n", "same", "-S", "train.patience=3", *STAGES)  # the same weights
    done = project.run(*COMMAND, "workspace", "same", "--out", "models/soup.safetensors")
    assert "2 members" in done.stdout
    facts = read_facts(root / "models/soup.safetensors")
    assert facts.architecture == read_facts(root / "models/model.safetensors").architecture
    assert facts.training["tried"] == 2
    one, soup = (
        load_model(root / "models" / name)[0].state_dict() for name in ("model.safetensors", "soup.safetensors")
    )
    assert all(torch.allclose(one[name], soup[name]) for name in one)
    table, classes = read_predictions(root / "models/soup.csv")
    alone, _ = read_predictions(root / "data/predictions.csv")
    joined = table.merge(alone, on=["image_id", "split"], suffixes=("", "_alone"))
    assert len(joined) == len(table) == len(alone)
    assert np.abs(as_arrays(table, classes)[2] - as_arrays(alone, classes)[2]).max() < 1e-4
    card = (root / "models/soup.md").read_text(encoding="utf-8")
    assert "the mean of the weights of 2 of 2 networks, chosen on validation by macro_auc" in card
    path = root / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    params["split"]["seed"] += 1
    path.write_text(yaml.safe_dump(params), encoding="utf-8")
    project.run("dvc", "repro", "split")
    refused = project.run(*COMMAND, "main", "same", "--out", "models/other.safetensors", check=False)
    assert "data/splits.csv of the workspace is not the one" in refused.stderr
    assert not (root / "models/other.safetensors").exists()
