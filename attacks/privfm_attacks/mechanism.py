"""The mechanism audit: is what runs what was promised? Checks of the real code on made-up units; no image is touched.

Every check has a threshold that was fixed beforehand. The statistical ones (noise scale, participation, freshness)
raise a false alarm with a probability of at most `ALPHA` each; the others are exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from privfm.errors import PrivfmError
from privfm.federation.network import Learner
from privfm.federation.planning import mechanism_of
from privfm.gradients import collected_shares
from privfm.plan import HospitalPlan, Plan
from privfm_attacks.bench import Bench, distinct_hospitals
from privfm_attacks.clip_checks import (
    called_twice,
    later_steps,
    not_finite,
    own_network,
    scale,
    sum_of_clipped,
    unit_sensitivity,
)
from privfm_attacks.masking import masks_are_fresh
from privfm_attacks.noise_checks import (
    empty_draw,
    long_noise,
    noise_of_steps,
    noise_scale,
    own_entropy,
    same_seed,
)
from privfm_attacks.other_releases import adaptive_clip_norm, shown_loss
from privfm_attacks.round_checks import charges, sampling, what_leaves
from privfm_attacks.thresholds import ALPHA
from privfm_attacks.unit_checks import units_as_loaded
from privfm_attacks.verdicts import AuditResult, Finding, Verdict
from privfm_attacks.whole_rounds import whole_rounds

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
    none = "" if plan.privacy.dp else "; next to no noise is declared (--no-dp), so that it protects nobody"
    sentence = (
        f"{len(findings)} checks hold: noise, clipping, sampling and charges are as declared{none}"
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
    """Run every check: of each hospital's mechanism, equal ones once; of network, masks and whole rounds once."""
    checks: tuple[Check, ...] = (
        noise_scale, empty_draw, noise_of_steps, same_seed, unit_sensitivity, sum_of_clipped, later_steps, called_twice,
        not_finite, scale, sampling, what_leaves, charges, shown_loss, adaptive_clip_norm,
    )  # fmt: skip
    for hospital in distinct_hospitals(plan):
        alike = sum(mechanism_of(plan, each) == mechanism_of(plan, hospital) for each in plan.hospitals) - 1
        name = f"{hospital.id} and {alike} like it" if alike else hospital.id
        for check in checks:
            for finding in _heard(check.__name__, partial(_on_bench, check, plan, hospital)):
                yield Finding(finding.check, finding.passed, f"{name}: {finding.detail}")
    yield from _heard("long noise", partial(_on_bench, long_noise, plan, plan.hospitals[0]))
    yield from _heard("own entropy", own_entropy)
    yield from _heard("units as loaded", partial(units_as_loaded, plan))
    yield from _heard("units apart", partial(units_apart, learner))
    yield from _heard("own network", partial(own_network, learner))
    yield from _heard("fresh masks", partial(masks_are_fresh, ALPHA))
    yield from _heard("whole rounds", partial(whole_rounds, plan))


def _on_bench(check: Check, plan: Plan, hospital: HospitalPlan) -> Iterator[Finding]:
    return check(Bench(plan, hospital))


def _heard(name: str, findings: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check's findings; one that the code under test refuses or breaks off, whatever the reason, has failed."""
    try:
        yield from findings()
    except (PrivfmError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = str(error) if isinstance(error, PrivfmError) else f"{type(error).__name__}: {error}"
        yield Finding(f"{name.replace('_', ' ')} (refused)", False, why)


def units_apart(learner: Learner, units: int = 4) -> Iterator[Finding]:
    """On the run's own network and objective: moving or removing a unit leaves the others' gradients as they were.

    Nothing is remembered either: a second look finds the same, and network and buffers stay what they were.
    """
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

    keys, kept = list(range(units)), _state(network)
    before = rows(views, keys)
    moved = views.clone()
    moved[1] = -3 * moved[1] + 1
    after, without = rows(moved, [0, 99, *keys[2:]]), rows(views[[0, *keys[2:]]], [0, *keys[2:]])
    others = [0, *keys[2:]]
    for name, found in (("moved", after[others]), ("removed", without)):
        change = _change(found, before[others])
        yield Finding(f"units apart, one {name}", change < 1e-3, f"others' gradients change by {change:.1e}")
    change = _change(rows(views, keys), before)
    most = 1e-6 if views.device.type == "cpu" else 1e-4
    yield Finding(
        "nothing remembered", change < most, f"the same units' gradients change by {change:.1e} when asked again"
    )
    changed = [name for name, value in _state(network).items() if not torch.equal(value, kept[name])]
    yield Finding("network untouched", not changed, f"units changed: {', '.join(changed) or 'nothing'}")


def _change(found: Tensor, before: Tensor) -> float:
    """Of rows, the largest relative one."""
    return float(((found - before).norm(dim=1) / before.norm(dim=1)).max())


def _state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers, of those too that are not stored."""
    return {name: value.detach().clone() for name, value in (*network.named_parameters(), *network.named_buffers())}
