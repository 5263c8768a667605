"""Image and metadata: counts, what reaches the logits, and the control without metadata."""

import pytest
import torch

from exp_tools.models.architectures.multimodal import MetadataBranch
from exp_tools.models.registry import build_model, count_parameters

TINY = {"backbone": "test_resnet"}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("multimodal", TINY, 3).eval()


def test_parameters_by_part():
    with torch.device("meta"):
        model = build_model("multimodal", {}, 7)
    parts = {name: count_parameters(part) for name, part in model.named_children()}
    assert parts == {
        "backbone": 20_177_488,
        "metadata": (32 + 32) + (32 * 64 + 64) + 4 * 8 + 16 * 16 + (88 * 128 + 128),
        "classifier": (1408 * 512 + 512) + (512 * 128 + 128) + (128 * 7 + 7),
    }
    assert parts["metadata"] + parts["classifier"] == 801_831
    assert sum(parts.values()) == 20_979_319


def test_the_control_differs_in_the_first_layer_alone():
    whole = dict(build_model("multimodal", TINY, 3).named_parameters())
    control = build_model("multimodal", TINY | {"enabled": False}, 3)
    assert not control.uses_metadata
    shapes = {name: parameter.shape for name, parameter in control.named_parameters()}
    assert shapes.keys() == {name for name in whole if not name.startswith("metadata.")}
    other = {name for name, shape in shapes.items() if shape != whole[name].shape}
    assert other == {"classifier.0.weight"}
    assert whole["classifier.0.weight"].shape[1] - shapes["classifier.0.weight"][1] == 128
    assert control(torch.randn(2, 3, 64, 64)).shape == (2, 3)


def test_the_branch_by_hand():
    torch.manual_seed(0)
    branch = MetadataBranch(2, 4, 0.0)
    age, sex, site = -1.5, 2, 4  # the last rows: values that train never had
    hidden = (branch.age[0].weight[:, 0] * age + branch.age[0].bias).relu()
    hidden = (branch.age[2].weight @ hidden + branch.age[2].bias).relu()
    joined = torch.cat([hidden, branch.sex.weight[sex], branch.localization.weight[site]])
    expected = (branch.joined[0].weight @ joined + branch.joined[0].bias).relu()
    torch.testing.assert_close(branch(torch.tensor([[age, sex, site]]))[0], expected)


@pytest.mark.parametrize("column", [0, 1, 2])
def test_every_column_reaches_the_logits(model, column):
    images = torch.randn(1, 3, 64, 64)
    metadata = torch.tensor([[0.0, 1.0, 2.0]])
    changed = metadata.clone()
    changed[0, column] += 1
    with torch.no_grad():
        assert (model(images, metadata) - model(images, changed)).abs().max() > 1e-5
        torch.testing.assert_close(model(images, metadata), model(images, metadata.clone()), rtol=0, atol=0)


def test_rows_do_not_mix(model):
    images, metadata = torch.randn(3, 3, 64, 64), torch.tensor([[0.0, 0, 0], [1.0, 1, 1], [-1.0, 3, 15]])
    with torch.no_grad():
        together = model(images, metadata)
        alone = torch.cat([model(images[i : i + 1], metadata[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_two_patients_are_mixed_where_they_are_vectors():
    torch.manual_seed(0)
    branch = MetadataBranch(2, 4, 0.0)
    one, other, kept = torch.tensor([[-1.5, 0, 4]]), torch.tensor([[0.5, 2, 1]]), torch.tensor([[0.75]])
    hidden = (branch.age[0].weight[:, 0] * -1.0 + branch.age[0].bias).relu()  # 0.75 · -1.5 + 0.25 · 0.5
    hidden = (branch.age[2].weight @ hidden + branch.age[2].bias).relu()
    sex = 0.75 * branch.sex.weight[0] + 0.25 * branch.sex.weight[2]
    site = 0.75 * branch.localization.weight[4] + 0.25 * branch.localization.weight[1]
    expected = (branch.joined[0].weight @ torch.cat([hidden, sex, site]) + branch.joined[0].bias).relu()
    torch.testing.assert_close(branch(one, other, kept)[0], expected)
    torch.testing.assert_close(branch(one, other, torch.ones(1, 1)), branch(one))
    torch.testing.assert_close(branch(one, other, torch.zeros(1, 1)), branch(other))
