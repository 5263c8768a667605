"""The heads of a probe against independent fits, and which settings of training they honour."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import nn

from exp_tools.errors import UserError
from exp_tools.models.architectures.probe import FLOOR, TEMPERATURE, MetadataColumns, Neighbours, ProbeNet
from exp_tools.models.backbone import Backbone
from exp_tools.probing.fit import NEIGHBOURS, PENALTIES, fit_probe
from exp_tools.training.loader import TrainingData

TRAIN, VAL, WIDTH = 150, 90, 12
CLASSES = list("abc")


@pytest.fixture
def data(tmp_path):
    """Three classes of unlike frequency, as (features [240, 12], TrainingData)."""
    generator = np.random.default_rng(3)
    labels = generator.choice(3, TRAIN + VAL, p=[0.6, 0.3, 0.1])
    centres = generator.normal(size=(3, WIDTH)) * 0.7
    scale, shift = generator.uniform(0.1, 30, WIDTH), generator.normal(size=WIDTH) * 20
    features = ((centres[labels] + generator.normal(size=(TRAIN + VAL, WIDTH))) * scale + shift).astype(np.float32)
    features[:, 0], features[:, 1] = 3, features[:, 2]  # one that tells nothing, one that is there twice
    rows = np.arange(TRAIN + VAL)
    return features, TrainingData(tmp_path, labels, rows[:TRAIN], rows[TRAIN:], CLASSES, [str(row) for row in rows])


class NoEncoder(Backbone):
    """Stands for encoders whose features are there already."""

    def __init__(self):
        nn.Module.__init__(self)
        self.pixel_mean = self.pixel_std = (0.5, 0.5, 0.5)


def probe(head: nn.Module, columns: MetadataColumns | None = None) -> ProbeNet:
    return ProbeNet([NoEncoder()], columns, head)


def changed(params, **changes):
    return params.train.model_copy(update={"sampler": "none", "class_weights": "none", "patience": None, **changes})


def run(head, data, params, **options):
    steps = []
    features, given = data
    fitted, decided = fit_probe(
        probe(head, **options), features, given, params, on_step=lambda step, scores: steps.append((step, scores))
    )
    assert all("train/lr" in scores for _, scores in steps)  # dvc.yaml draws it of every model
    return fitted, decided, steps


@pytest.mark.parametrize(
    ("changes", "class_weight"),
    [
        ({}, None),
        ({"class_weights": "balanced"}, "balanced"),
        ({"sampler": "balanced"}, "balanced"),
        ({"class_weights": {"c": 7}}, {0: 1, 1: 1, 2: 7}),
    ],
)
def test_the_linear_head_is_logistic_regression(data, params, changes, class_weight):
    features, given = data
    head = nn.Linear(WIDTH, 3)
    fitted, decided, steps = run(head, data, changed(params, select_on="loss", **changes))
    train, val = features[:TRAIN].astype(float), features[TRAIN:].astype(float)
    scaler = StandardScaler().fit(train)
    labels = given.labels[:TRAIN]
    weights = np.ones(3)
    if class_weight == "balanced":
        weights = TRAIN / 3 / np.bincount(labels)
    elif class_weight:
        weights = np.array(list(class_weight.values()))
    total = weights[labels].sum()
    oracle = LogisticRegression(C=1 / decided["penalty"] / total, class_weight=class_weight, tol=1e-8, max_iter=5000)
    oracle.fit(scaler.transform(train), labels)
    expected = oracle.predict_proba(scaler.transform(val))
    found = torch.from_numpy(fitted.logits).softmax(1).numpy()
    assert np.abs(found - expected).max() < 2e-3
    assert PENALTIES[0] > decided["penalty"] > PENALTIES[-1]  # inside the grid, so that the choice is one
    with torch.no_grad():  # the standardisation is in the weights: the head takes features as they are
        torch.testing.assert_close(head(torch.from_numpy(features[TRAIN:])), torch.from_numpy(fitted.logits))
    assert [step for step, _ in steps] == list(range(1, len(PENALTIES) + 1))
    assert decided == {"penalty": PENALTIES[fitted.best_epoch - 1]}
    losses = [scores["val/loss"] for _, scores in steps]
    assert fitted.best_epoch == 1 + int(np.argmin(losses))
    assert fitted.best_scores["loss"] == pytest.approx(min(losses), rel=1e-4)


def test_penalties_are_tried_until_the_score_stays_below_its_best(data, params):
    every = run(nn.Linear(WIDTH, 3), data, changed(params, select_on="loss"))
    some = run(nn.Linear(WIDTH, 3), data, changed(params, select_on="loss", patience=2))
    assert some[0].epochs_run == some[0].best_epoch + 2 < len(PENALTIES)
    assert some[0].best_epoch == every[0].best_epoch
    assert some[2] == every[2][: len(some[2])]


def test_smoothed_and_focal_losses_are_honoured(data, params):
    plain = run(nn.Linear(WIDTH, 3), data, changed(params, select_on="loss"))[2]
    for changes in ({"label_smoothing": 0.2}, {"loss": "focal"}):
        other = run(nn.Linear(WIDTH, 3), data, changed(params, select_on="loss", **changes))[2]
        assert abs(plain[6][1]["train/loss"] - other[6][1]["train/loss"]) > 0.01


@pytest.mark.parametrize("rule", ["none", "balanced"])
def test_neighbours_vote_as_those_of_scikit_learn(data, params, rule):
    features, given = data
    head = Neighbours([WIDTH], 3, TRAIN, 1)
    fitted, decided, steps = run(head, data, changed(params, class_weights=rule))
    labels = given.labels[:TRAIN]
    weights = TRAIN / 3 / np.bincount(labels) if rule == "balanced" else np.ones(3)
    oracle = KNeighborsClassifier(decided["neighbours"], metric="cosine").fit(features[:TRAIN], labels)
    distance, places = oracle.kneighbors(features[TRAIN:])
    votes = np.zeros((VAL, 3))
    for row in range(VAL):
        for gap, place in zip(distance[row], places[row], strict=True):
            votes[row, labels[place]] += np.exp(-gap / TEMPERATURE) * weights[labels[place]]
    expected = np.log(votes / votes.sum(1, keepdims=True) + FLOOR)
    np.testing.assert_allclose(fitted.logits, expected, atol=1e-3)
    assert head.neighbours == decided["neighbours"]
    tried = [k for k in NEIGHBOURS if k < TRAIN] + [TRAIN]
    assert (len(steps), head.neighbours) == (len(tried), tried[fitted.best_epoch - 1])


def test_encoders_weigh_the_same_among_neighbours():
    head = Neighbours([2, 3], 2, 4, 1)
    features = torch.tensor([[3.0, 4.0, 100.0, 0.0, 0.0]])
    torch.testing.assert_close(head.unit(features), torch.tensor([[0.6, 0.8, 1.0, 0.0, 0.0]]) / 2**0.5)


def test_the_hidden_layer_learns_what_no_line_parts(tmp_path, params):
    generator = np.random.default_rng(0)
    features = generator.uniform(-1, 1, (600, 2)).astype(np.float32) * (5, 0.01)
    labels = (features.prod(axis=1) > 0).astype(int)
    rows = np.arange(600)
    given = TrainingData(tmp_path, labels, rows[:400], rows[400:], ["a", "b"], [str(row) for row in rows])
    settings = changed(params, epochs=20, lr=0.03, select_on="accuracy")
    data = (features.astype(np.float32), given)
    line = run(nn.Linear(2, 2), data, settings)[0]

    def hidden():
        torch.manual_seed(1)
        return run(nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2)), data, settings)

    first, second = hidden(), hidden()
    assert line.best_scores["accuracy"] < 0.7 < 0.93 < first[0].best_scores["accuracy"]
    np.testing.assert_array_equal(first[0].logits, second[0].logits)
    assert first[2] == second[2]
    assert {"train/loss", "train/lr", "val/loss"} <= first[2][0][1].keys()


def test_the_hidden_layer_stops_early_and_keeps_its_best(data, params):
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 3))
    settings = changed(params, epochs=80, lr=0.03, schedule="constant", patience=3, select_on="loss")
    fitted, _, steps = run(head, data, settings)
    losses = [scores["val/loss"] for _, scores in steps]
    assert len(steps) == fitted.epochs_run == fitted.best_epoch + 3 < 80
    assert fitted.best_scores["loss"] == pytest.approx(min(losses), rel=1e-3)


def test_a_sampler_draws_for_the_hidden_layer(data, params):
    def shares(rule):
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 3))
        fitted = run(head, data, changed(params, sampler=rule, epochs=8, lr=0.01))[0]
        return torch.from_numpy(fitted.logits).softmax(1).mean(0)[2]

    assert shares("balanced") > 1.2 * shares("none")  # the rare class


def test_metadata_join_the_features(data, params):
    features, given = data
    metadata = np.zeros((TRAIN + VAL, 3), np.float32)
    metadata[:, 1] = given.labels  # the sex tells the class
    known = TrainingData(*(getattr(given, name) for name in given.__dataclass_fields__ if name != "metadata"), metadata)
    columns = MetadataColumns(3, 1)
    assert columns.columns == 1 + 4 + 2
    shown = columns(torch.tensor([[0.5, 2.0, 1.0]]))
    assert shown.tolist() == [[0.5, 0, 0, 1, 0, 0, 1]]
    fitted = run(nn.Linear(WIDTH + 7, 3), (features, known), changed(params, select_on="accuracy"), columns=columns)[0]
    assert fitted.best_scores["accuracy"] == 1


@pytest.mark.parametrize(
    ("head", "changes", "message"),
    [
        ("linear", {"mixup": 0.2}, "train.mixup is 0.2, which a probe with a linear head cannot do: its encoders are"),
        ("linear", {"ema": 0.99}, "train.ema is 0.99.*set it to null"),
        ("knn", {"label_smoothing": 0.1}, "train.label_smoothing is 0.1.*nearest neighbours minimise no loss"),
        ("knn", {"loss": "focal"}, "train.loss is focal.*set it to cross_entropy"),
    ],
)
def test_what_a_head_cannot_honour_is_refused(data, params, head, changes, message):
    made = nn.Linear(WIDTH, 3) if head == "linear" else Neighbours([WIDTH], 3, TRAIN, 1)
    with pytest.raises(UserError, match=message) as caught:
        run(made, data, changed(params, **changes))
    assert "\n" not in str(caught.value)
