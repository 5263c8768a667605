"""The released model: found by its name, refused when its bytes are others, and half precision."""

import hashlib
import json

import pytest
import torch
from helpers.datasets import picture
from helpers.models import write_model
from helpers.project import ROOT

from exp_tools.cli.main import main
from exp_tools.errors import UserError
from exp_tools.models import released
from exp_tools.models.model_file import copy_model, read_facts, save_model
from exp_tools.models.registry import load_model
from exp_tools.models.released import model_path, released_model
from exp_tools.project import MODEL, RELEASED, SUMS


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a released model, in whose folder the test runs."""
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / RELEASED).mkdir(parents=True)
    write_model(tmp_path / MODEL)
    write_released(tmp_path, source="ham10000")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_released(root, **facts):
    path = root / RELEASED / "small.safetensors"
    write_model(path, **facts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (root / RELEASED / SUMS).write_text(f"{digest}  {path.name}\n")
    return path


def test_released_is_the_file_of_the_project_from_any_folder_of_it(project, monkeypatch):
    (project / "inside").mkdir()
    monkeypatch.chdir(project / "inside")
    assert model_path("released") == project / RELEASED / "small.safetensors"
    assert model_path("other.safetensors").name == "other.safetensors"


@pytest.mark.parametrize("fault", ["other bytes", "gone"])
def test_other_bytes_are_refused_with_what_brings_them_back(project, fault):
    path = project / RELEASED / "small.safetensors"
    content = path.read_bytes()
    path.unlink()
    if fault == "other bytes":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"is not the file that was released .*: git checkout -- models/released"):
        released_model()


def test_predict_takes_it_by_name(project, capsys):
    picture(0).save("lesion.png")
    assert main(["predict", "lesion.png", "--model", "released", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["trained_on"] == "ham10000"


def test_a_command_without_a_model_names_the_released_one(project, capsys, monkeypatch):
    monkeypatch.setattr(released, "__file__", str(project / "installed" / "exp_tools" / "models" / "released.py"))
    (project / MODEL).unlink()
    picture(0).save("lesion.png")
    assert main(["predict", "lesion.png"]) == 1
    assert "; --model released is the one that comes with the project" in capsys.readouterr().err
    (project / RELEASED / SUMS).unlink()
    assert main(["predict", "lesion.png"]) == 1
    assert "--model released" not in capsys.readouterr().err
    assert main(["predict", "lesion.png", "--model", "released"]) == 1
    assert "there is no released model here" in capsys.readouterr().err


def test_half_precision_is_half_the_size_and_the_same_network(tmp_path):
    write_model(tmp_path / "model.safetensors")
    facts = read_facts(tmp_path / "model.safetensors")
    copy_model(tmp_path / "model.safetensors", tmp_path / "half.safetensors", facts, half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("half.safetensors", "model.safetensors")]
    assert sizes[0] < 0.55 * sizes[1]
    (whole, _), (half, read) = load_model(tmp_path / "model.safetensors"), load_model(tmp_path / "half.safetensors")
    assert read == facts
    for (name, one), other in zip(whole.state_dict().items(), half.state_dict().values(), strict=True):
        assert other.dtype == one.dtype
        assert torch.equal(other, one.half().float() if one.ndim > 1 else one), name


def test_a_model_file_has_the_rights_of_any_other_file(tmp_path):
    (tmp_path / "any").touch()
    write_model(tmp_path / "model.safetensors")
    facts = read_facts(tmp_path / "model.safetensors")
    copy_model(tmp_path / "model.safetensors", tmp_path / "copy.safetensors", facts)
    assert len({(tmp_path / name).stat().st_mode for name in ("any", "model.safetensors", "copy.safetensors")}) == 1


def test_a_number_that_float16_cannot_hold_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    write_model(path)
    network, facts = load_model(path)
    torch.nn.init.constant_(network.classifier.weight, 1e5)
    save_model(path, network, facts)
    with pytest.raises(UserError, match=r"float16 holds numbers up to 65,504, and classifier.weight has 1e\+05"):
        copy_model(path, tmp_path / "half.safetensors", facts, half=True)
    assert not (tmp_path / "half.safetensors").exists()


@pytest.mark.skipif(not (ROOT / RELEASED / SUMS).is_file(), reason="no model is released")
def test_what_is_released_is_small_and_works(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    path = released_model()
    assert path.stat().st_size < 8e6
    picture(0).save(tmp_path / "lesion.png")
    assert main(["predict", str(tmp_path / "lesion.png"), "--model", "released"]) == 0
    assert "trained on ham10000" in capsys.readouterr().out
