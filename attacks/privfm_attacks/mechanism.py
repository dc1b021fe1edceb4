"""The mechanism audit: is what runs what was promised? Checks of the real code on made-up units; no image is touched.

Every check has a threshold that was fixed beforehand. The statistical ones (noise scale, participation, freshness)
raise a false alarm with a probability of at most `ALPHA` each; the others are exact up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from privfm.dp.coins import Coins, InjectedCoins, SystemCoins
from privfm.federation.network import Learner
from privfm.federation.optimizers import NoisedGradient
from privfm.gradients import collected_shares
from privfm.plan import Plan
from privfm_attacks.bench import OUTPUTS, Bench, KnownUnits, distinct_hospitals
from privfm_attacks.masking import masks_are_fresh
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["ALPHA", "audit_mechanism", "mechanism_checks"]

ALPHA = 1e-6
"""Chance of a false alarm of one statistical check."""

ROUNDING = 1e-4
"""Relative, of sums in single precision."""

NAME = "mechanism"

Check = Callable[[Bench], Iterator[Finding]]


def audit_mechanism(plan: Plan, learner: Learner) -> AuditResult:
    """Return the audit of a plan's mechanism at every hospital, and of its network and objective.

    Args:
        plan: complete.
        learner: the run's network and objective.
    """
    findings = tuple(mechanism_checks(plan, learner))
    failed = [finding for finding in findings if not finding.passed]
    sentence = (
        f"{len(findings)} checks hold: noise, clipping, sampling and charges are as declared"
        if not failed
        else f"{len(failed)} of {len(findings)} checks fail: " + "; ".join(sorted({each.check for each in failed}))
    )
    return AuditResult(
        name=NAME,
        verdict=Verdict.LEAK if failed else Verdict.NO_LEAK_DETECTED,
        sentence=sentence,
        attacker="none: the code that a hospital runs is tested from inside, on units that are nobody",
        null_means="It does not show that other code, another version or another machine behaves alike, nor that the "
        "proof's assumptions about floating point hold.",
        findings=findings,
        figures={"checks": len(findings), "failed": len(failed)},
    )


def mechanism_checks(plan: Plan, learner: Learner) -> Iterator[Finding]:
    """Run every check: of each hospital's mechanism, hospitals with equal numbers once; of network and masks once."""
    checks: tuple[Check, ...] = (
        noise_scale, empty_draw, unit_sensitivity, sum_of_clipped, called_twice, not_finite, scale, sampling, freshness,
        charges,
    )  # fmt: skip
    for hospital in distinct_hospitals(plan):
        for check in checks:
            for finding in check(Bench(plan, hospital)):
                yield Finding(finding.check, finding.passed, f"{hospital.id}: {finding.detail}")
    yield from units_apart(learner)
    yield from masks_are_fresh(ALPHA)


def _two_sided(statistic: float, degrees: int) -> float:
    """The p-value of a chi-square statistic that may be too small as well as too large."""
    return min(1.0, 2 * float(min(stats.chi2.cdf(statistic, degrees), stats.chi2.sf(statistic, degrees))))


def _variance(name: str, released: Tensor, std: float) -> Finding:
    """Two-sided chi-square test that values are centred normals of this standard deviation."""
    values = released.double().numpy()
    statistic, degrees = float((values**2).sum()) / std**2, values.size
    p = _two_sided(statistic, degrees)
    ratio = math.sqrt(statistic / degrees)
    return Finding(name, bool(p > ALPHA), f"noise is {ratio:.4f} of the declared {std:.4g} (p = {p:.2g})")


def _declared_std(bench: Bench) -> float:
    """Of the noise in one value, from the plan's numbers and not from the mechanism that is tested."""
    plan, hospital = bench.plan, bench.hospital
    noise, clip_norm = hospital.noise_multiplier, plan.privacy.clip_norm
    if noise is None or clip_norm is None:
        raise ValueError("the plan is not complete")
    expected = plan.sample_rate(hospital) * hospital.nominal_units
    if plan.privacy.clip_quantile is not None:  # a count of sensitivity 1/2 is released beside (Andrew et al. 2021)
        count = max(expected / 20, noise)
        noise = (noise**-2 - (2 * count) ** -2) ** -0.5
    return noise * clip_norm / expected


def noise_scale(bench: Bench) -> Iterator[Finding]:
    """Zero gradients in, the declared noise out, also where many units were drawn."""
    rows = torch.zeros(bench.hospital.nominal_units, OUTPUTS)
    released = bench.releases(rows, SystemCoins()).gradient((1, 0, 0))
    yield _variance("noise scale", released.vector, _declared_std(bench))


def empty_draw(bench: Bench) -> Iterator[Finding]:
    """A step in which nobody was drawn is as noisy as any other."""
    released = bench.releases(torch.zeros(1, OUTPUTS), SystemCoins(), units=0).gradient((1, 0, 0))
    yield _variance("empty draw", released.vector, _declared_std(bench))


def _rows(count: int, norm: float, seed: int) -> Tensor:
    """Directions of units, each of that norm."""
    rows = torch.randn(count, OUTPUTS, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows) * norm


def _expected_units(bench: Bench) -> float:
    return bench.plan.sample_rate(bench.hospital) * bench.hospital.nominal_units


def unit_sensitivity(bench: Bench) -> Iterator[Finding]:
    """A unit whose gradient is a hundred clip norms long moves the sum by one clip norm, and no other way."""
    clip_norm, alone = bench.mechanism.clip_norm, _rows(1, 100 * bench.mechanism.clip_norm, 1)
    others = _rows(4, 0.3 * clip_norm, 2)
    moved = 0.0
    for trial in range(400):  # until it is drawn
        label = f"sensitivity {trial}"
        with_it = bench.gradient(torch.cat([others, alone]), label, units=5)
        moved = float((with_it - bench.gradient(torch.cat([others, alone]), label, units=4)).norm())
        if moved > 0:
            break
    reach = moved * _expected_units(bench) / clip_norm
    yield Finding(
        "sensitivity", 0.99 < reach <= 1 + ROUNDING, f"one unit of 100 clip norms moves the sum by {reach:.5f}"
    )


def _compare(bench: Bench, name: str, rows: Tensor, *, calls: int = 1) -> Finding:
    """Whether a step with these units differs from one with zero gradients by the sum of what each may add."""
    label = f"{name} of {len(rows)}"
    drawn = bench.mechanism.draw(len(rows), InjectedCoins(label.encode()).stream("draw", 1, 0, 0)).tolist()
    wanted = sum((bench.clipped(rows[unit]) for unit in drawn), torch.zeros(1)) / _expected_units(bench)
    zero = bench.gradient(torch.zeros_like(rows), label, calls=calls)
    found = bench.gradient(rows, label, calls=calls) - zero
    scale = max(float(wanted.norm()), bench.mechanism.clip_norm / _expected_units(bench))
    error = float((found - wanted).norm()) / scale
    tolerance = ROUNDING * max(1.0, float(zero.abs().max()) * math.sqrt(zero.numel()) / scale)
    return Finding(name, error < tolerance, f"{len(drawn)} units: relative error {error:.1e} against a sum over units")


def sum_of_clipped(bench: Bench) -> Iterator[Finding]:
    """Several micro-batches of units, some above and some below the clip norm, all pulling about one way."""
    clip_norm = bench.mechanism.clip_norm
    rows = _rows(1, 1.0, 3) * clip_norm * torch.linspace(0.2, 5.0, 17)[:, None] + _rows(17, 0.1 * clip_norm, 4)
    yield _compare(bench, "clipped sum", rows)


def called_twice(bench: Bench) -> Iterator[Finding]:
    """A layer that is called twice for a unit has one gradient, clipped once."""
    yield _compare(bench, "shared parameter", _rows(12, 3 * bench.mechanism.clip_norm, 5), calls=2)


def not_finite(bench: Bench) -> Iterator[Finding]:
    """Units without a finite gradient add nothing and spoil nobody's."""
    rows = _rows(6, 2 * bench.mechanism.clip_norm, 6)
    rows[1, 3], rows[4, 0] = math.nan, math.inf
    yield _compare(bench, "not finite", rows)


def scale(bench: Bench) -> Iterator[Finding]:
    """One unit more, whose gradient is zero, changes nothing: neither rate nor divisor comes from the data."""
    few, rows = bench.hospital.nominal_units, _rows(1, bench.mechanism.clip_norm, 7)
    rows = torch.cat([rows.expand(few, -1), torch.zeros(max(20, few), OUTPUTS)])
    label = "scale"
    difference = float((bench.gradient(rows, label) - bench.gradient(rows, label, units=few)).abs().max())
    yield Finding("scale", difference == 0.0, f"as many blank units again change the result by {difference:.2g}")


def sampling(bench: Bench, steps: int = 200) -> Iterator[Finding]:
    """Each unit takes part by a coin of its own of the declared rate: totals vary as a binomial's do."""
    units, rate = max(12, min(60, bench.hospital.nominal_units)), bench.plan.sample_rate(bench.hospital)
    counts = _participation(bench, units, steps)
    totals = counts.sum(axis=1)
    total = stats.binomtest(int(totals.sum()), units * steps, rate).pvalue
    yield Finding(
        "sampling rate", bool(total > ALPHA), f"{totals.mean() / units:.4f} drawn, {rate:g} declared (p = {total:.2g})"
    )
    if rate == 1.0:
        return
    statistic = float(((totals - units * rate) ** 2).sum() / (units * rate * (1 - rate)))
    p = _two_sided(statistic, steps)
    yield Finding("sampling variance", bool(p > ALPHA), f"{statistic / steps:.3f} of a Poisson sample's (p = {p:.2g})")
    each = counts.sum(axis=0)
    spread = float(((each - steps * rate) ** 2).sum() / (steps * rate * (1 - rate)))
    p = _two_sided(spread, units)
    yield Finding("sampling of each", bool(p > ALPHA), f"units' shares spread {spread / units:.3f} (p = {p:.2g})")


def _participation(bench: Bench, units: int, steps: int) -> np.ndarray:
    """[steps, units]: who was drawn, by what the hospital's own steps load."""
    releases = bench.releases(torch.zeros(units, OUTPUTS), SystemCoins(), micro_batch=units)
    for step in range(steps):
        releases.gradient((1, 0, step))
    counts = np.zeros((steps, units), dtype=np.int64)
    for step, drawn in enumerate(cast(KnownUnits, releases.units).drawn):
        counts[step, drawn] = 1
    return counts


def freshness(bench: Bench) -> Iterator[Finding]:
    """Noise of two steps, of two rounds and of two hospitals has nothing in common, and no seed brings it back."""
    blank = torch.zeros(4, OUTPUTS)

    def step(where: tuple[int, int, int], coins: Coins) -> Tensor:
        noised: NoisedGradient = bench.releases(blank, coins).gradient(where)
        return noised.vector.double()

    coins = SystemCoins()
    first = step((1, 0, 0), coins)
    pairs = {
        "two steps": step((1, 0, 1), coins),
        "two rounds": step((2, 0, 0), coins),
        "two hospitals": step((1, 0, 0), SystemCoins()),
    }
    bound = stats.norm.isf(ALPHA / 2) / math.sqrt(first.numel())
    for name, other in pairs.items():
        correlation = float(torch.corrcoef(torch.stack([first, other]))[0, 1])
        yield Finding(
            f"fresh noise, {name}", bool(abs(correlation) < bound), f"correlation {correlation:+.4f}, bound {bound:.4f}"
        )
    draws = {tuple(bench.mechanism.draw(200, SystemCoins().stream("draw", 1, 0, 0)).tolist()) for _ in range(3)}
    certain = bench.plan.sample_rate(bench.hospital) == 1.0
    yield Finding("fresh draws", certain or len(draws) == 3, f"{len(draws)} different draws under one label of three")


def charges(bench: Bench) -> Iterator[Finding]:
    """As many releases as a round charges, each with the noise that is charged."""
    plan, counted = bench.plan, _Counting()
    releases = bench.releases(torch.zeros(3, OUTPUTS), counted)
    start = torch.zeros(releases.learner.network.layer.weight.numel())  # type: ignore[union-attr, operator]
    vectors = releases.of_round(start, 1, 0)
    charged = bench.mechanism.event(plan.steps_per_round)
    yield Finding(
        "charged steps",
        charged.steps == counted.draws,
        f"{counted.draws} draws of units in a round, {charged.steps} steps charged",
    )
    shown = 2 if plan.evaluation.local_loss else 1
    yield Finding("what leaves", len(vectors) == shown, f"{len(vectors)} vectors leave in a round, {shown} declared")
    declared = (plan.sample_rate(bench.hospital), bench.hospital.noise_multiplier)
    found = (charged.sample_rate, charged.noise_multiplier)
    yield Finding("charged mechanism", declared == found, f"charged as q, sigma = {found}, declared {declared}")


class _Counting:
    """The operating system's coins, and how often units were drawn with them."""

    private = True

    def __init__(self) -> None:
        self._coins, self.draws = SystemCoins(), 0

    def stream(self, *label: str | int):  # type: ignore[no-untyped-def]
        self.draws += label[0] in ("draw", "loss draw")
        return self._coins.stream(*label)


def units_apart(learner: Learner, units: int = 4) -> Iterator[Finding]:
    """On the run's own network and objective: moving or removing a unit leaves the others' gradients as they were."""
    network, objective, plan = learner
    size, generator = plan.data.image_size, torch.Generator().manual_seed(0)
    views = torch.randn(units, 2, plan.data.channels, size, size, generator=generator)
    views = views.to(next(network.parameters()).device)

    def rows(views: Tensor, keys: list[int]) -> Tensor:
        shares = collected_shares(
            network,
            lambda: objective.unit_losses(network, views, [np.random.default_rng(key) for key in keys]),
            len(keys),
        )
        return torch.cat([share.rows().values for share in shares.values()], dim=1)

    keys = list(range(units))
    before = rows(views, keys)
    moved = views.clone()
    moved[1] = -3 * moved[1] + 1
    after, without = rows(moved, [0, 99, *keys[2:]]), rows(views[[0, *keys[2:]]], [0, *keys[2:]])
    others = [0, *keys[2:]]
    scale = before[others].norm(dim=1)
    for name, found in (("moved", after[others]), ("removed", without)):
        change = float(((found - before[others]).norm(dim=1) / scale).max())
        yield Finding(f"units apart, one {name}", change < 1e-3, f"others' gradients change by {change:.1e}")
