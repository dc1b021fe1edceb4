"""Readings of sums are turned into hospitals' only as far as the matrix of who was in them allows; pooled honestly."""

from __future__ import annotations

import numpy as np
import pytest
from privfm_attacks import disaggregation
from privfm_attacks.disaggregation import METHODS, expectation_maximisation, least_squares
from privfm_attacks.distribution import n_leaked
from privfm_attacks.pooling import Scored, auc, pool
from sklearn.metrics import roc_auc_score

HOSPITALS = 8


def federation(seed: int, rounds: int = 40, noise: float = 0.5, share: float = 0.5) -> tuple[np.ndarray, ...]:
    """Weights, readings and labels of a made-up federation."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(HOSPITALS) < HOSPITALS // 2
    taking_part = round(share * HOSPITALS)
    weights = np.array([rng.permutation(HOSPITALS) < taking_part for _ in range(rounds)]).astype(float)
    return weights, weights @ labels + rng.normal(0, noise, rounds), labels


def scored(method: str, federations: int = 12, **settings: float) -> list[Scored]:
    made = [federation(seed, **settings) for seed in range(federations)]  # type: ignore[arg-type]
    return [Scored(METHODS[method](weights, readings), labels) for weights, readings, labels in made]


@pytest.mark.parametrize("method", METHODS)
def test_half_of_them_in_every_sum_are_told_apart(method: str) -> None:
    found = pool(scored(method), np.random.default_rng(0))
    assert found.auc > 0.99
    assert found.p < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_all_of_them_in_every_sum_are_not(method: str) -> None:
    found = pool(scored(method, share=1.0), np.random.default_rng(0))
    assert (found.auc, found.low, found.high, found.p) == (0.5, 0.5, 0.5, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_shuffled_matrix_tells_nothing(method: str) -> None:
    rng, found = np.random.default_rng(0), []
    for seed in range(30):
        weights, readings, labels = federation(seed)
        found.append(Scored(METHODS[method](rng.permuted(weights, axis=1), readings), labels))
    pooled = pool(found, rng)
    assert pooled.low < 0.5 < pooled.high
    assert pooled.p > 0.01


def test_least_squares_is_exact_without_noise() -> None:
    weights, readings, labels = federation(3, noise=0.0)
    assert least_squares(weights, readings) == pytest.approx(labels.astype(float))


def test_many_hospitals_go_by_the_mean_field_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, readings, labels = federation(5, noise=1.5)
    exact = expectation_maximisation(weights, readings)
    monkeypatch.setattr(disaggregation, "ENUMERATED", 4)
    odds = expectation_maximisation(weights, readings)
    assert np.array_equal(odds > 0, exact > 0)
    assert (np.abs(odds) >= np.abs(exact)).all()  # a mean field is too sure of itself
    weights, readings, labels = federation(5, share=1.0)
    assert auc(expectation_maximisation(weights, readings), labels) == 0.5


def test_weights_count() -> None:
    rng = np.random.default_rng(1)
    weights, _, labels = federation(7)
    uneven = weights * rng.uniform(0.2, 3.0, HOSPITALS)
    assert least_squares(uneven, uneven @ labels) == pytest.approx(labels.astype(float))


def test_area_under_the_curve() -> None:
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))
    assert auc(np.array([1.0, 1.0 + 1e-13]), np.array([False, True])) == 0.5


def test_chance_is_called_chance() -> None:
    rng = np.random.default_rng(3)

    def nothing() -> list[Scored]:
        return [Scored(rng.normal(size=8), rng.permutation(8) < 4) for _ in range(10)]

    found = [pool(nothing(), rng) for _ in range(200)]
    ps = np.array([each.p for each in found])
    assert 0.01 < (ps < 0.05).mean() < 0.10
    assert 0.86 < np.mean([each.low <= 0.5 <= each.high for each in found]) < 0.98


def test_scores_are_never_compared_across_federations() -> None:
    """One federation's scale, or its level, says nothing about another's hospitals."""
    rng, labels = np.random.default_rng(4), np.arange(8) < 4
    level = [Scored(rng.normal(100.0 * number, 1.0, 8), rng.permutation(labels)) for number in range(10)]
    shifted = [Scored(each.scores - 100.0 * number, each.labels) for number, each in enumerate(level)]
    assert pool(level, np.random.default_rng(0)).auc == pytest.approx(pool(shifted, np.random.default_rng(0)).auc)


def test_n_leaked_reads_accuracy_as_patients() -> None:
    assert n_leaked(0.4, (0.4, 0.6)) == 0.0
    assert n_leaked(0.9, (0.4, 0.6)) == pytest.approx(np.log(0.36) / np.log(2 / 3))
    assert n_leaked(0.9, (0.1, 0.9)) < n_leaked(0.9, (0.4, 0.6)) < n_leaked(0.99, (0.4, 0.6))
    assert n_leaked(0.9, (0.1, 0.3)) == pytest.approx(np.log(0.36) / np.log(0.7 / 0.9))
    assert n_leaked(0.8, (0.6, 0.4)) == n_leaked(0.8, (0.4, 0.6))
    with pytest.raises(ValueError, match="two different ones"):
        n_leaked(0.9, (0.5, 0.5))


def test_no_fewer_patients_would_tell_as_much() -> None:
    """The best guess from n patients is right no more often than n_leaked grants them."""
    from scipy import stats

    for patients in (1, 3, 10, 30):
        counts = np.arange(patients + 1)
        few, many = (stats.binom.pmf(counts, patients, share) for share in (0.4, 0.6))
        best = float(np.maximum(few, many).sum() / 2)
        assert n_leaked(best, (0.4, 0.6)) <= patients + 1e-9
