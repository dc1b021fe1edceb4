"""Membership: told apart where an encoder was overfitted, not where it never saw anybody; intervals and bounds hold."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from privfm_attacks import membership, telling_apart
from privfm_attacks.claims import Claim, allowed_auc
from privfm_attacks.membership import MembershipEffort, audit_membership
from privfm_attacks.overfitting import overfit
from privfm_attacks.pooling import auc
from privfm_attacks.telling_apart import FOLDS, RIDGE, ToldApart, roc, tell_apart, tell_kinds_apart
from privfm_attacks.verdicts import AuditResult, Plot, Verdict

from privfm.data import ArrayPixels, load_images
from privfm.dp.events import SampledGaussian
from privfm.federation.cohort import Cohort, gather_cohort
from privfm.federation.network import Learner, build_learner
from privfm.federation.planning import complete_plan
from privfm.objectives import Network
from privfm.plan import Plan, parse_plan

QUICK = MembershipEffort(patients=60, images=2, draws=4, control_images=60, control_steps=400, control_seconds=60.0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def plan_of(dp: bool = True) -> Plan:
    return parse_plan(
        {
            "data": {"source": "phantom", "patients": 90, "image_size": 16, "hospitals": 3, "min_patients": 4},
            "model": {"patch_size": 4, "width": 48, "depth": 2, "heads": 2, "init": "scratch"},
            "objective": {"mask_ratio": 0.5},
            "privacy": {"dp": dp, "images_per_unit": 2},
            "federation": {"rounds": 2, "local_steps": 1},
        }
    )


def setting(dp: bool = True) -> tuple[Learner, Cohort]:
    """Two images of each patient, so that an audit looks at those that were trained on."""
    plan = plan_of(dp)
    cohort = gather_cohort(plan)
    few = {
        name: own.select(np.concatenate([rows[:2] for rows in own.by_patient()])) for name, own in cohort.images.items()
    }
    return build_learner(complete_plan(plan, cohort.nominal_units, 1.0)), replace(cohort, images=few)


@pytest.fixture(scope="module")
def overfitted() -> Network:
    start, cohort = setting()
    images = torch.cat([torch.from_numpy(own.load(np.arange(len(own)))) for own in cohort.images.values()])
    overfit(start, images, 1500, 120.0, np.random.default_rng(0))
    return start.network


def failed(result: AuditResult) -> list[str]:
    return [finding.check for finding in result.findings if not finding.passed]


def test_an_encoder_that_saw_nobody_is_not_told_apart() -> None:
    start, cohort = setting()
    learner = start._replace(network=copy.deepcopy(start.network))
    overfit(learner, torch.rand(60, 1, 16, 16), 60, 60.0, np.random.default_rng(1))  # of other images altogether
    result = audit_membership(learner, start, cohort, QUICK)
    assert result.figures["low"] < 0.5 < result.figures["high"] + 0.1
    assert "within what is allowed" not in failed(result)
    (plot,) = result.plots
    assert len(plot.curves["attack"]) == 100


def test_an_encoder_overfitted_without_dp_leaks(overfitted: Network) -> None:
    start, cohort = setting(dp=False)
    result = audit_membership(start._replace(network=overfitted), start, cohort, QUICK)
    assert result.verdict is Verdict.LEAK
    assert result.figures["auc"] > 0.7


def test_more_than_the_guarantee_allows_leaks(overfitted: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    start, cohort = setting()
    learner = start._replace(network=overfitted)
    monkeypatch.setattr(Claim, "allowed", 0.99)
    assert audit_membership(learner, start, cohort, QUICK).verdict is not Verdict.LEAK
    monkeypatch.setattr(Claim, "allowed", 0.51)
    assert audit_membership(learner, start, cohort, QUICK).verdict is Verdict.LEAK


def test_sides_of_two_kinds_settle_nothing(overfitted: Network) -> None:
    """Blurred strangers are told apart by anybody, and sharp ones hide what the encoder gives away."""
    start, cohort = setting(dp=False)
    strange = load_images("phantom", image_size=16, patients=90, seed=7)
    pixels = torch.nn.functional.avg_pool2d(torch.from_numpy(strange.load(np.arange(len(strange)))), 3, 1, 1)
    blurred = replace(strange, pixels=ArrayPixels(pixels.numpy()))
    result = audit_membership(start._replace(network=overfitted), start, cohort, QUICK, others=blurred)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert failed(result)[-1] == "one kind of patients"
    assert result.figures["blind_auc"] > 0.7


def figures_of(auc: float, low: float, high: float, p: float) -> ToldApart:
    return ToldApart(auc, low, high, p, found=0.1, alarms=0.1)


@pytest.mark.parametrize("claim", [Claim(), Claim.of_guarantee(1.0, 1e-5)])
def test_a_faint_difference_of_kind_excuses_no_more_than_it_makes(claim: Claim) -> None:
    blind = figures_of(0.567, 0.52, 0.62, 0.002)
    control = membership._Control(figures_of(0.9, 0.85, 0.95, 0.002), (), 1, (), np.zeros(0), np.zeros(0))

    def judged(told: ToldApart) -> AuditResult:
        return membership._judged(claim, told, blind, control, Plot("", "", "", "", {}), local=False)

    perfect = judged(figures_of(0.999, 0.996, 1.0, 0.002))
    assert perfect.verdict is Verdict.LEAK
    assert failed(perfect) == ["within what is allowed", "one kind of patients"]
    assert judged(figures_of(0.58, 0.55, 0.61, 0.002)).verdict is Verdict.INCONCLUSIVE
    blind = figures_of(0.9999, 0.998, 1.0, 0.002)
    assert judged(figures_of(0.999, 0.996, 1.0, 0.002)).verdict is Verdict.INCONCLUSIVE


def test_one_kind_of_patients_is_seldom_taken_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The p of labels that are dealt out before weights are fitted is uniform; dealt out after, it is not."""
    monkeypatch.setattr(telling_apart, "RESAMPLES", 400)
    rng = np.random.default_rng(0)
    told = [tell_kinds_apart(rng.standard_normal((25, 6)), rng.standard_normal((25, 6)), rng) for _ in range(150)]
    assert np.mean([each.p < 0.1 for each in told]) < 0.15
    assert not any(each.beyond_chance for each in told)
    assert np.mean([each.high - each.low for each in told]) > 0.48  # of independent scores: 0.4
    assert tell_kinds_apart(rng.normal(0.8, 1.0, (25, 6)), rng.normal(0.0, 1.0, (25, 6)), rng).beyond_chance


def test_scores_are_those_of_weights_fitted_to_others() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    features, labels, folds = rng.standard_normal((30, 40)), rng.integers(2, size=30), np.arange(30) % FOLDS
    scores = telling_apart._scores_of_labels(features, folds) @ labels
    for fold in range(FOLDS):
        scaler = StandardScaler().fit(features[folds != fold])
        model = Ridge(RIDGE).fit(scaler.transform(features[folds != fold]), labels[folds != fold])
        expected = scaler.transform(features[folds == fold]) @ model.coef_
        np.testing.assert_allclose(scores[folds == fold], expected, atol=1e-9)
    areas = telling_apart._areas(scores[:, None], labels[:, None].astype(float))
    assert areas == pytest.approx([auc(scores, labels == 1)])


@pytest.mark.parametrize(("others", "p"), [(20, 1 / 21), (99, 1 / 100), (120, 1 / 121)])
def test_of_one_patient_p_is_as_small_as_can_be(others: int, p: float) -> None:
    told = tell_apart(np.array([9.0]), np.linspace(0.0, 1.0, others), np.random.default_rng(0))
    assert told.p == pytest.approx(p)
    assert told.beyond_chance is (others == 120)


def test_figures_about_a_folder_of_others_stay_at_the_hospital() -> None:
    """Even those of a run on patients who are nobody's."""
    start, cohort = setting()
    strange, few = load_images("phantom", image_size=16, patients=9, seed=7), replace(QUICK, patients=9)
    assert audit_membership(start, start, cohort, few, others=strange).local
    assert not audit_membership(start, start, cohort, few).local


@pytest.mark.parametrize(("low", "high", "passed"), [(0.40, 0.60, True), (0.40, 0.70, False), (0.46, 0.55, True)])
def test_an_interval_is_short_or_all_within_what_is_allowed(low: float, high: float, passed: bool) -> None:
    told = ToldApart(auc=(low + high) / 2, low=low, high=high, p=0.5, found=0.1, alarms=0.1)
    control = membership._Control(replace(told, auc=0.9), (), 1, (), np.zeros(0), np.zeros(0))
    for claim, enough in ((Claim.of_guarantee(0.62, 0.0), passed), (Claim(), high - low <= 0.1)):
        result = membership._judged(claim, told, told, control, Plot("", "", "", "", {}), local=False)
        assert ("enough patients" not in failed(result)) is enough


def test_a_control_that_fails_makes_it_inconclusive() -> None:
    start, cohort = setting()
    result = audit_membership(start, start, cohort, replace(QUICK, control_steps=1))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "control caught" in failed(result)


def test_too_few_patients_are_inconclusive_and_said_to_be() -> None:
    start, cohort = setting()
    result = audit_membership(start, start, cohort, replace(QUICK, patients=10))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "20 of each are needed" in result.sentence


def test_intervals_hold_the_truth_and_chance_is_chance() -> None:
    rng, truth = np.random.default_rng(0), 0.7602  # of normals one deviation apart
    held = 0
    for _ in range(20):
        told = tell_apart(rng.normal(1.0, 1.0, 80), rng.normal(0.0, 1.0, 60), rng)
        held += told.low <= truth <= told.high
        assert told.p < 0.01
    assert held >= 18
    blind = tell_apart(rng.normal(size=200), rng.normal(size=100), rng)
    assert blind.p > 0.005
    assert blind.alarms == 0.1


def test_the_lowest_rate_of_false_alarms_has_ten_behind_it() -> None:
    inside, outside = np.full(50, 100.0), np.arange(40.0)
    told = tell_apart(inside, outside, np.random.default_rng(0))
    assert (told.found, told.alarms, told.auc) == (1.0, 0.25, 1.0)
    curve = roc(inside, outside)
    assert curve[-1] == (1.0, 1.0)
    assert curve == sorted(curve)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_what_is_allowed_is_at_least_the_best_attack_s(sigma: float) -> None:
    mu = 1 / sigma
    rng = np.random.default_rng(0)
    attack = float((rng.normal(mu, 1.0, 200_000) > rng.normal(0.0, 1.0, 200_000)).mean())
    assert attack - 0.003 < allowed_auc([SampledGaussian(1.0, sigma, 1)]) < attack + 0.03
