"""Which cases are explained, how maps are drawn and judged, and the stage from model to pictures."""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.datasets import DataProject
from helpers.predictions import scaled
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from exp_tools.data.images.preprocess import Preprocessing
from exp_tools.data.inputs.dataset import PackedImages
from exp_tools.errors import UserError
from exp_tools.evaluation.predictions import prediction_table
from exp_tools.explain.cases import choose_cases, choose_of_each
from exp_tools.explain.figures import outlined
from exp_tools.explain.localization import energy_inside, localization_report
from exp_tools.explain.maps import explain_rows, methods_of
from exp_tools.explain.overlay import is_flat, overlay, unit, upsample
from exp_tools.explain.randomization import (
    STEPS,
    randomisation_test,
    randomised_names,
    rank_correlation,
    similarity,
    structural_similarity,
)
from exp_tools.models.model_file import ModelFacts, save_model
from exp_tools.models.registry import build_model

CLASSES = ["bkl", "mel", "nv"]


def predictions(right: dict[str, int], wrong: dict[str, int]) -> pd.DataFrame:
    """So many rows of each class; a wrong one is predicted as the next class."""
    after = dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))
    rows = [(code, code) for code, count in right.items() for _ in range(count)]
    rows += [(code, after[code]) for code, count in wrong.items() for _ in range(count)]
    table = pd.DataFrame(rows, columns=["dx", "predicted"])
    return table.assign(
        image_id=[f"I{row:03d}" for row in range(len(table))], lesion_id=[f"L{row}" for row in range(len(table))]
    )


def test_half_right_half_wrong_over_the_classes():
    table = predictions({"bkl": 3, "mel": 9, "nv": 40}, {"bkl": 9, "mel": 2, "nv": 5})
    chosen = choose_cases(table, 12, CLASSES, seed=0)
    right = chosen["dx"] == chosen["predicted"]
    assert right.tolist() == [True] * 6 + [False] * 6
    assert chosen.loc[right, "dx"].tolist() == ["bkl"] * 2 + ["mel"] * 2 + ["nv"] * 2
    assert chosen.loc[~right, "dx"].tolist() == ["bkl"] * 2 + ["mel"] * 2 + ["nv"] * 2
    assert chosen["image_id"].is_unique


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [({"nv": 9}, {"mel": 2}, (4, 2)), ({"nv": 1}, {"mel": 9}, (1, 5)), ({"nv": 1}, {"mel": 2}, (1, 2))],
)
def test_the_other_half_fills_up(right, wrong, expected):
    chosen = choose_cases(predictions(right, wrong), 6, CLASSES, seed=0)
    good = int((chosen["dx"] == chosen["predicted"]).sum())
    assert (good, len(chosen) - good) == expected


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows():
    table = predictions({"bkl": 30, "mel": 30, "nv": 30}, {"bkl": 30, "mel": 30, "nv": 30})
    chosen = choose_cases(table, 8, CLASSES, seed=1)["image_id"].tolist()
    assert chosen == choose_cases(table.iloc[::-1], 8, CLASSES, seed=1)["image_id"].tolist()
    assert chosen != choose_cases(table, 8, CLASSES, seed=2)["image_id"].tolist()


def test_a_lesion_is_shown_once():
    table = predictions({"nv": 20}, {"mel": 20}).assign(lesion_id=["L1"] * 10 + ["L2"] * 10 + ["L3"] * 20)
    assert sorted(choose_cases(table, 12, CLASSES, seed=0)["lesion_id"]) == ["L1", "L2", "L3"]
    assert len(choose_of_each(table, 12, seed=0)) == 3


def test_so_many_of_each_class():
    table = predictions({"bkl": 2, "mel": 9, "nv": 40}, {"mel": 1})
    assert choose_of_each(table, 5, seed=0)["dx"].value_counts().to_dict() == {"bkl": 2, "mel": 5, "nv": 5}


def test_upsampling_keeps_pixel_centres():
    made = upsample(np.array([[[0.0, 4.0]] * 2]), 4)
    np.testing.assert_allclose(made, [[[0, 1, 3, 4]] * 4])
    small = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    theirs = nn.functional.interpolate(small, size=(10, 10), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(upsample(small[:, 0].numpy(), 10), theirs[:, 0].numpy(), atol=1e-6)


def test_maps_are_stretched_one_by_one():
    made = unit(np.array([[[2.0, 4.0], [3.0, 2.0]], [[5.0, 5.0], [5.0, 5.0]]]))
    np.testing.assert_allclose(made, [[[0, 1], [0.5, 0]], [[0, 0], [0, 0]]])


def test_overlay_leaves_weak_places_and_colours_strong_ones():
    image = np.full((2, 2, 3), 100, np.uint8)
    made = overlay(image, np.array([[0.0, 2.0], [0.0, 0.0]]), strength=0.5)
    np.testing.assert_array_equal(made[0, 0], [100, 100, 100])
    # The end of viridis is (0.993, 0.906, 0.144); half of it and half of 100.
    np.testing.assert_allclose(made[0, 1], [(100 + 253.3) / 2, (100 + 231.1) / 2, (100 + 36.7) / 2], atol=1)
    np.testing.assert_array_equal(overlay(image, np.ones((3, 3))), image)
    assert made.dtype == np.uint8


def test_the_outline_is_drawn_around_the_lesion():
    mask = np.zeros((256, 256), bool)
    mask[100:150, 60:90] = True
    drawn = outlined(np.full((256, 256, 3), 128, np.uint8), mask)
    white = np.argwhere((drawn == 255).all(axis=2))
    assert (white.min(axis=0) - (100, 60)).tolist() == pytest.approx([0, 0], abs=2)
    assert (white.max(axis=0) - (149, 89)).tolist() == pytest.approx([0, 0], abs=2)
    np.testing.assert_array_equal(drawn[125, 75], [128] * 3)


def test_energy_inside_by_hand():
    masks = np.array([[[True, False], [False, False]]] * 3)
    maps = np.array([[[3.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(energy_inside(maps, masks), [0.75, 0, np.nan])


def test_an_even_map_has_the_share_of_the_area():
    masks = np.random.default_rng(0).random((5, 30, 30)) < 0.3
    np.testing.assert_allclose(energy_inside(np.ones((5, 4, 4)), masks), masks.mean(axis=(1, 2)), rtol=1e-6)


def test_focus_by_class():
    masks = np.array([[[True, False], [False, False]]] * 2 + [[[True, True], [False, False]]] * 2)
    maps = np.array([[[1.0, 0], [0, 0]], [[1.0, 1], [0, 0]], [[0, 0.0], [1, 1]], [[0.0, 0], [0, 0]]])
    report = localization_report({"gradcam": maps}, masks, ["mel", "mel", "nv", "nv"], CLASSES)["gradcam"]
    assert report == {
        "all": {"images": 3, "blank": 1, "energy": 0.5, "area": pytest.approx(1 / 3)},
        "mel": {"images": 2, "blank": 0, "energy": 0.75, "area": 0.25},
        "nv": {"images": 1, "blank": 1, "energy": 0.0, "area": 0.5},
    }


def test_rank_correlation_is_spearmans():
    generator = np.random.default_rng(0)
    for one, other in generator.integers(0, 5, (20, 2, 3, 4)).astype(float):  # many ties
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one.ravel(), other.ravel()).statistic, abs=1e-12)
    assert np.isnan(rank_correlation(np.ones((2, 2)), np.eye(2)))


def test_ssim_by_the_definition():
    x, y = np.random.default_rng(0).random((2, 11, 11))
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy, cov = (window * x * x).sum() - mx**2, (window * y * y).sum() - my**2, (window * x * y).sum() - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert structural_similarity(x, y) == pytest.approx(expected, abs=1e-9)
    assert structural_similarity(x, x) == pytest.approx(1)


def test_similarity_counts_blank_maps():
    first = np.array([[[0.0, 1], [2, 3]], [[0, 1], [2, 3]]])
    second = np.array([[[0.0, 2], [4, 6]], [[0, 0], [0, 0]]])
    made = similarity(first, second)
    assert made["rank_correlation"] == pytest.approx(1)
    assert made["blank"] == 0.5
    assert 0.5 < made["ssim"] < 1


@pytest.mark.parametrize(("name", "knobs"), [("soft_attention", {"backbone": "test_resnet"}), ("emas", {})])
def test_weights_become_random_from_the_head_down(name, knobs):
    model = build_model(name, knobs, 3)
    steps = randomised_names(model)
    names = list(model.state_dict())
    assert len(steps) == len(STEPS)
    assert all(one < other for one, other in itertools.pairwise(steps))
    assert steps[0] == {entry for entry in names if not entry.startswith("backbone.")}
    assert steps[-1] == set(names)
    for backbone in ["backbone.mobilenet.", "backbone.efficientnet."] if name == "emas" else ["backbone."]:
        inside = [entry for entry in names if entry.startswith(backbone)]
        random = [entry in steps[2] for entry in inside]
        assert random == sorted(random)  # what was built last is random first
        assert 0.4 < np.mean(random) < 0.6


def toy_maps(network: nn.Module) -> dict[str, np.ndarray]:
    return {
        "own": network.backbone.network.conv1[0].weight.detach()[:4, 0].numpy().copy(),
        "image": np.eye(4)[:, None] * [[1.0], [2]],
    }


def test_a_map_of_the_weights_changes_and_a_map_of_the_image_does_not():
    torch.manual_seed(0)
    model, *draws = (build_model("timm", {"backbone": "test_resnet"}, 3).eval() for _ in range(3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps, chance, maps = randomisation_test(model, draws, toy_maps)
    assert [step["randomised"] for step in steps["own"]] == list(STEPS)
    own = [step["rank_correlation"] for step in steps["own"]]
    assert own[:4] == pytest.approx([1] * 4)  # the first layer is the last to become random
    assert own[4] < 0.9
    assert [step["ssim"] for step in steps["image"]] == pytest.approx([1] * 5)
    assert chance["image"]["rank_correlation"] < 0.5
    assert len(maps) == 6
    np.testing.assert_array_equal(maps[0]["own"], maps[4]["own"])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_methods_that_a_network_has():
    attentive = build_model("soft_attention", {"backbone": "test_resnet"}, 3)
    control = build_model("soft_attention", {"backbone": "test_resnet", "enabled": False}, 3)
    assert methods_of(attentive, "auto") == ["gradcam", "attention"]
    assert methods_of(attentive, "attention") == ["attention"]
    assert methods_of(control, "auto") == ["gradcam"]
    with pytest.raises(UserError, match=r"explain.method is attention, but the model has no attention map"):
        methods_of(control, "attention")


def test_maps_do_not_depend_on_the_batches(tmp_path, monkeypatch):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8))
    images, rows = PackedImages(tmp_path / "images.npy", np.zeros(7)), np.array([6, 0, 3, 4, 1])
    torch.manual_seed(0)
    model, targets = build_model("soft_attention", {"backbone": "test_resnet"}, 3).eval(), np.array([0, 1, 2, 0, 1])
    run = (model, images, rows, targets, ["gradcam", "attention"], torch.device("cpu"))
    whole = explain_rows(*run)
    monkeypatch.setattr("exp_tools.explain.maps.BATCH", 2)
    for method, made in explain_rows(*run).items():
        assert made.shape == whole[method].shape
        np.testing.assert_allclose(made, whole[method], atol=1e-6)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The sample set prepared and split, an untrained model, and its predictions: some right, some wrong."""
    project = DataProject(
        tmp_path / "p", monkeypatch.chdir, data__sample_images=60, prepare__image_size=96, machine__threads=1
    )
    project.run("download", "prepare", "split")
    write_model(project, "soft_attention", {"backbone": "test_resnet"})
    return project


def write_model(project: DataProject, name: str, knobs: dict, vocabulary: dict | None = None) -> None:
    labels, splits = project.labels(), project.splits()
    classes = sorted(set(labels["dx"]))
    torch.manual_seed(0)
    model = build_model(name, knobs, len(classes))
    facts = ModelFacts(
        architecture=name,
        knobs=knobs,
        task="diagnosis",
        classes=classes,
        preprocessing=Preprocessing(32)._asdict(),
        pixel_mean=list(model.pixel_mean),
        pixel_std=list(model.pixel_std),
        calibration=scaled(len(classes)).as_dict(),
        source="synthetic",
        vocabulary=vocabulary,
    )
    save_model(project.folder / "models/model.safetensors", model, facts)
    logits = np.random.default_rng(0).normal(size=(len(labels), len(classes)))
    logits[np.arange(len(labels)), [classes.index(code) for code in labels["dx"]]] += 1
    table = prediction_table(labels, splits["split"].to_numpy(), logits, classes, scaled(len(classes)))
    table = table[table["split"] != "train"]
    table.to_csv(project.folder / "data/predictions.csv", index=False)


def results(project: DataProject) -> dict[str, bytes]:
    names = ("metrics/explain.json", "plots/explain/cases.png", "plots/explain/sanity.png")
    return {name: (project.folder / name).read_bytes() for name in names}


def test_the_stage_explains_cases_and_tests_its_maps(project, capsys):
    project.run("explain")
    report = project.metrics("explain")
    splits = project.splits().set_index("image_id")["split"]
    assert set(splits[report["cases"]]) == {"test"}
    assert len(report["cases"]) == min(
        12, project.labels().set_index("image_id").loc[report["cases"], "lesion_id"].nunique()
    )
    assert report["map_size"].keys() == {"gradcam", "attention"}
    for method, size in report["map_size"].items():
        assert size == [3, 3]
        focus = report["focus"][method]["all"]
        assert 0 < focus["area"] < 1
        assert sum(
            part["images"] + part["blank"] for name, part in report["focus"][method].items() if name != "all"
        ) == (focus["images"] + focus["blank"])
        steps = report["sanity"]["by_step"][method]
        assert [step["randomised"] for step in steps] == list(STEPS)
        assert all(-1 <= step["rank_correlation"] < 0.9 for step in steps[-1:])
    assert "too coarse to say where" in capsys.readouterr().err
    for name in ("cases", "sanity"):
        with Image.open(project.folder / f"plots/explain/{name}.png") as picture:
            assert min(picture.size) > 500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 100


def test_the_stage_says_which_maps_are_flat_and_draws_them_without_colours(project, capsys, monkeypatch):
    one_position = {"gradcam": lambda model, inputs, target: np.full((len(target), 1, 1), 0.3, np.float32)}
    monkeypatch.setattr("exp_tools.explain.maps.METHODS", one_position)
    drawn = []
    monkeypatch.setattr("exp_tools.explain.figures._say_flat", lambda axes, heat: drawn.append(is_flat(heat[None])[0]))
    project.change(explain__method="gradcam").run("explain")
    said = capsys.readouterr().err
    assert re.search(r"warning: (\d+) of \1 gradcam maps are the same everywhere: they show no place", said)
    assert "a map of a single position means nothing" in said
    assert len(drawn) > 10
    assert all(drawn)
    assert {step["blank"] for step in project.metrics("explain")["sanity"]["by_step"]["gradcam"]} == {1.0}


def test_the_stage_gives_the_same_bytes_twice(project):
    project.run("explain")
    first = results(project)
    project.run("explain")
    assert results(project) == first
    project.change(explain__seed=1).run("explain")
    assert (
        json.loads(results(project)["metrics/explain.json"])["cases"]
        != json.loads(first["metrics/explain.json"])["cases"]
    )


def test_the_stage_without_masks_and_without_attention(project):
    from exp_tools.data.images.masks import pack_masks

    pack_masks(project.folder / "data/prepared/masks.npy", [], [], {}, Preprocessing(32), processes=1)
    write_model(project, "timm", {"backbone": "test_resnet"})
    project.run("explain")
    report = project.metrics("explain")
    assert report["focus"] is None
    assert list(report["map_size"]) == ["gradcam"]
    message = project.change(explain__method="attention").fails("explain")
    assert "explain.method is attention" in message


def test_the_stage_with_metadata(project):
    vocabulary = {
        "age_mean": 50.0,
        "age_std": 15.0,
        "age_median": 50.0,
        "sex": ["female", "male"],
        "localization": ["back"],
    }
    knobs = {"backbone": "test_resnet", "sexes": 2, "localizations": 1}
    write_model(project, "multimodal", knobs, vocabulary)
    project.change(explain__images=1).run("explain")
    assert len(project.metrics("explain")["cases"]) == 1


def test_predictions_of_another_model_and_an_empty_test_split(project):
    path = project.folder / "data/predictions.csv"
    table = pd.read_csv(path)
    table[table["split"] != "test"].to_csv(path, index=False)
    assert "no image of the test split" in project.fails("explain")
    others = table.rename(columns={"logit_nv": "logit_other", "p_nv": "p_other"})
    others.replace({"dx": "nv", "predicted": "nv"}, "other").to_csv(path, index=False)
    assert "make them again with `dvc repro evaluate`" in project.fails("explain")
