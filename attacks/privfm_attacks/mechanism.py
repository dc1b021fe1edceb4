"""The mechanism audit: is what runs what was promised? Checks of the real code on made-up units; no image is touched.

Every check has a threshold that was fixed beforehand. The statistical ones (noise scale, participation, freshness)
raise a false alarm with a probability of at most `ALPHA` each; the others are exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from privfm.federation.network import Learner
from privfm.gradients import collected_shares
from privfm.plan import Plan
from privfm_attacks.bench import Bench, distinct_hospitals
from privfm_attacks.clip_checks import (
    called_twice,
    not_finite,
    own_network,
    scale,
    sum_of_clipped,
    unit_sensitivity,
)
from privfm_attacks.masking import masks_are_fresh
from privfm_attacks.noise_checks import empty_draw, noise_of_steps, noise_scale, same_seed
from privfm_attacks.round_checks import charges, sampling, what_leaves
from privfm_attacks.thresholds import ALPHA
from privfm_attacks.verdicts import AuditResult, Finding, Verdict

__all__ = ["ALPHA", "audit_mechanism", "mechanism_checks"]

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
        noise_scale, empty_draw, noise_of_steps, same_seed, unit_sensitivity, sum_of_clipped, called_twice, not_finite,
        scale, sampling, what_leaves, charges,
    )  # fmt: skip
    for hospital in distinct_hospitals(plan):
        for check in checks:
            for finding in check(Bench(plan, hospital)):
                yield Finding(finding.check, finding.passed, f"{hospital.id}: {finding.detail}")
    yield from units_apart(learner)
    yield from own_network(learner)
    yield from masks_are_fresh(ALPHA)


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
