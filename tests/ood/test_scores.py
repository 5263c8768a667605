"""Scores of foreign features, their limit, and the checks of a picture: by hand, by scikit-learn, by simulation."""

import numpy as np
import pandas as pd
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA

from exp_tools.evaluation.unlike import flagged_share, unlike_report
from exp_tools.ood import scores
from exp_tools.ood.checks import MEASURED, REASONS, failed, fit_limits, lesion_weights, measure, weighted_quantile
from exp_tools.ood.fit import OodFit, fit_ood, read_fit, write_fit
from exp_tools.ood.judge import ForeignJudge, fit_limit, packed, unpacked
from exp_tools.ood.scores import METHODS, fit_score, score


def features(count: int, width: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes around means of their own, correlated, and the classes."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(8, width))
    labels = rng.integers(3, size=count)
    hidden = rng.normal(size=(count, 8)) + 2 * np.eye(8)[labels]
    return (hidden @ mixing + 0.1 * rng.normal(size=(count, width)) + 5).astype(np.float32), labels


def test_the_residual_is_what_scikit_learns_pca_does_not_explain(monkeypatch):
    monkeypatch.setattr(scores, "DIRECTIONS", 6)
    x, labels = features(400)
    new, _ = features(50, seed=1)
    found = score("residual", fit_score("residual", x, labels, np.ones(400)), new)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    pca = PCA(6).fit((x - mean) / scale)

    def outside(values):
        z = (values - mean) / scale
        return ((z - pca.inverse_transform(pca.transform(z))) ** 2).sum(axis=1)

    assert found == pytest.approx(outside(new) / outside(x).mean(), rel=0.03)


def test_the_mahalanobis_distance_is_scikit_learns_to_the_nearest_class():
    x, labels = features(2_000, width=8)
    new, _ = features(50, width=8, seed=1)
    tensors = fit_score("mahalanobis", x, labels, np.ones(2_000))
    k = tensors["basis"].shape[1]
    z, other = ((values - x.mean(axis=0)) / x.std(axis=0) for values in (x, new))
    pca = PCA(k).fit(z)
    t, u = pca.transform(z), pca.transform(other)
    centres = np.stack([t[labels == c].mean(axis=0) for c in range(3)])
    spread = EmpiricalCovariance(assume_centered=True).fit(t - centres[labels])
    expected = np.min([spread.mahalanobis(u - centre) for centre in centres], axis=0) / k
    assert score("mahalanobis", tensors, new) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_features_without_a_distance_are_flagged_and_their_score_is_a_number(method):
    x, labels = features(300)
    facts = {"method": method, "limit": 1.0, "checks": dict.fromkeys(MEASURED, -1.0)}
    judge = ForeignJudge(facts, fit_score(method, x, labels, np.ones(300)))
    odd = np.stack([np.full(30, np.nan), np.full(30, 3e38), np.full(30, -np.inf)]).astype(np.float32)
    found = judge.judge(np.zeros((3, 8, 8, 3), np.uint8), odd)
    assert found.flagged.all()
    assert np.isfinite(found.scores).all()
    assert found.why == [REASONS["features"]] * 3


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_fits_in_the_model_file_counts_lesions_and_never_sees_a_constant_feature(method):
    x, labels = features(300, width=3_000)
    x[:, 7] = 4.0
    tensors = fit_score(method, x, labels, np.ones(300))
    assert sum(array.nbytes for array in tensors.values()) <= 200_000
    assert all(array.dtype == np.float16 and np.isfinite(array).all() for array in tensors.values())
    far = x[:5].copy()
    far[:, 7] = 1e4
    assert score(method, tensors, far) == pytest.approx(score(method, tensors, x[:5]))
    x, labels = features(200)
    twice = np.concatenate([x, x[:100]]), np.concatenate([labels, labels[:100]])
    halves = np.concatenate([np.full(100, 0.5), np.ones(100), np.full(100, 0.5)])
    same = score(method, fit_score(method, x, labels, np.ones(200)), x)
    assert score(method, fit_score(method, *twice, halves), x) == pytest.approx(same, rel=0.02)


def test_features_far_from_the_training_images_score_high():
    x, labels = features(400, width=60)
    strange = np.random.default_rng(5).normal(5, 3, (100, 60)).astype(np.float32)
    usual, _ = features(100, width=60, seed=2)
    tensors = fit_score("residual", x, labels, np.ones(400))
    assert score("residual", tensors, strange).min() > 10 * score("residual", tensors, usual).max()


def test_the_limit_flags_the_wanted_share_of_fresh_lesions_checks_included():
    """60 draws of 400 validation lesions with one to four images each, of which the checks flag 2 %."""
    rng, shares = np.random.default_rng(0), []
    for _ in range(60):
        lesion = np.repeat(np.arange(800), rng.integers(1, 5, 800))
        values = rng.normal(size=800)[lesion] + 0.5 * rng.normal(size=len(lesion))
        bad = rng.random(len(lesion)) < 0.02
        known = lesion < 400
        limit = fit_limit(np.exp(values[known]), bad[known], lesion_weights(lesion[known]), 0.95)
        flags = bad | (np.exp(values) > limit)
        shares.append([flagged_share(flags[one], lesion[one])["flagged"] for one in (known, ~known)])
    chosen, fresh = np.mean(shares, axis=0)
    assert chosen == pytest.approx(0.05, abs=0.003)
    assert max(one for one, _ in shares) <= 0.05 + 1e-9
    assert fresh == pytest.approx(0.05, abs=0.005)


def test_a_limit_is_a_number_where_the_checks_flag_more_than_is_allowed():
    assert fit_limit(np.array([1.0, 2.0]), np.array([True, True]), np.ones(2), 0.95) == 2.0
    assert weighted_quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), 0.5) == 2.0


def squares(count: int, size: int = 64, seed: int = 0) -> np.ndarray:
    """Skin-coloured grain with a dark spot."""
    rng = np.random.default_rng(seed)
    made = np.array([200, 150, 130]) + rng.normal(0, 12, (count, size, size, 1))
    made[:, size // 3 : size // 2, size // 3 : size // 2] -= 70
    return np.clip(made, 0, 255).astype(np.uint8)


def test_each_check_finds_its_own_fault():
    usual = squares(200)
    limits = fit_limits(measure(usual), np.ones(200))
    assert sum(map(bool, failed(measure(squares(100, seed=1)), limits))) <= 2
    flat = np.full((64, 64, 3), (200, 150, 130), np.uint8)
    blue = usual[0][..., ::-1].copy()
    smooth = np.repeat(np.repeat(usual[1][::16, ::16], 16, axis=0), 16, axis=1)
    found = failed(measure([flat, blue, smooth]), limits)
    assert found[:2] == [["contrast", "sharpness"], ["skin"]]
    assert "sharpness" in found[2]
    assert "skin" not in found[2]


def test_by_hand_a_checkerboard_has_all_the_contrast_and_no_skin():
    board = np.repeat((255 * (np.indices((8, 8)).sum(axis=0) % 2))[..., None], 3, axis=2).astype(np.uint8)
    assert measure([board])[0].tolist() == [127.5, 1020.0, 0.0]


def test_a_judgement_names_every_reason_and_its_tensors_travel_as_text(tmp_path):
    x, labels = features(200)
    images, rows, lesions = squares(200), np.arange(200), np.array([f"l{n // 2}" for n in range(200)], dtype=object)
    train = np.arange(200) < 140
    fit = fit_ood("residual", x, labels, lesions, train, images, rows)
    write_fit(tmp_path / "one", fit)
    write_fit(tmp_path / "two", fit_ood("residual", x, labels, lesions, train, images, rows))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    (tmp_path / "any").touch()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "any").stat().st_mode
    again = read_fit(tmp_path / "one")
    facts = again.facts(0.9)
    assert facts == fit.facts(0.9)
    assert 0.05 < facts["flagged"] <= 0.1
    judge = ForeignJudge(facts, unpacked(packed(again.tensors), tmp_path))
    blue = np.stack([images[150], images[151][..., ::-1]])
    judged = judge.judge(blue, np.stack([x[150], x[151] + 40 * np.sin(np.arange(30, dtype=np.float32))]))
    assert judged.flagged.tolist() == [judged.scores[0] > 1, True]
    assert judged.why[1] == (
        "hardly anything in it has the colours of skin; the network's features of it are far from those of the "
        "training images"
    )
    assert isinstance(fit, OodFit)


def test_flagged_shares_count_lesions_and_their_interval_holds():
    found = flagged_share(np.array([True, False, True, False]), np.array(["a", "a", "b", "c"], dtype=object))
    assert (found["flagged"], found["lesions"]) == (0.5, 3)
    none = flagged_share(np.zeros(100, bool), np.arange(100))
    assert none["flagged"] == none["low"] == 0
    assert none["high"] == pytest.approx(3.8416 / 103.8416, abs=1e-4)
    rng, inside = np.random.default_rng(1), 0
    for _ in range(500):
        flags = rng.random(300) < 0.05
        row = flagged_share(flags, np.arange(300))
        inside += row["low"] <= 0.05 <= row["high"]
    assert 0.92 < inside / 500 < 0.985
    assert unlike_report(pd.DataFrame({"dx": ["nv"]}), ["nv"]) is None
