"""What `privfm budget plan` was asked: one hospital by flags, or many by a plan file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privfm.errors import InputError, PlanError

if TYPE_CHECKING:
    from privfm.dp.events import SampledGaussian
    from privfm.dp.filter import RdpFilter
    from privfm.dp.outlook import BudgetQuestion, Outlook
    from privfm.plan import Plan

__all__ = ["Asked", "after_ledgers", "from_flags", "from_plan"]

POINTS = 10
"""Of a curve, beside its end."""

PLAN_KEYS = {
    "--rounds": "federation.rounds",
    "--local-steps": "federation.local_steps",
    "--retry-rounds": "federation.retry_rounds",
    "--epsilon": "privacy.epsilon",
    "--delta": "privacy.delta",
}
"""Flags that stand in place of a key of a plan file."""

MOST = {"--delta": 0.1, "--epsilon": 100.0, "--noise-multiplier": 1e6}

OVER_EPSILON = ("epsilon", "noise_multiplier")
"""Keys of a hospital that would keep an --epsilon from reaching it."""

MOST_STEPS = 10**6
"""Noisy steps that are planned for; the accountant's time grows with them, and nobody trains for as many."""


@dataclass(frozen=True)
class Asked:
    """Hospitals' budgets that are planned together.

    Args:
        questions: one for each hospital.
        steps: noisy steps of each when nothing crashes.
        reserved_steps: noisy steps that the noise has to suffice for: those and the retries.
        local_steps: noisy steps in a round; None where only steps were named.
        plan: the plan file, where there is one.
        caps: lifetime caps of hospitals whose ledgers were given and have one.
        what_if: whether flags stand in place of what the plan file says.
        remarks: sentences about how the question was taken.
    """

    questions: tuple[BudgetQuestion, ...]
    steps: int
    reserved_steps: int
    local_steps: int | None
    plan: Plan | None = None
    caps: Mapping[str, RdpFilter] = field(default_factory=dict)
    what_if: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def every(self) -> int:
        """Steps that a curve goes forward at least: a round."""
        return self.local_steps or 1

    def gradient_noise_multiplier(self, outlook: Outlook) -> float:
        """Return the noise of a hospital's gradients over the clip norm; an adaptive clip norm adds a little to it."""
        quantile = None if self.plan is None else self.plan.privacy.clip_quantile
        if quantile is None:
            return outlook.noise_multiplier
        from privfm.dp.mechanism import AdaptiveClipping, StepMechanism

        asked, adaptive = outlook.question, AdaptiveClipping(quantile, start=1.0)
        mechanism = StepMechanism(asked.sample_rate, asked.nominal_units, 1.0, outlook.noise_multiplier, adaptive)
        return mechanism.gradient_noise_multiplier

    def curve_at(self) -> list[int]:
        """Return the steps at which curves are read: early, evenly, at the plan's end and at its reserve's."""
        last = self.steps // self.every
        points = min(POINTS, last)
        evenly = {round(last * k / points) for k in range(1, points + 1)}
        early = {1, max(1, round(last / points / 3))}  # where curves bend
        return [*(self.every * each for each in sorted(early | evenly)), self.reserved_steps]


def from_flags(flags: dict[str, Any]) -> Asked:
    """Return one hospital's question; `flags` holds those that were typed."""
    from privfm.dp.outlook import BudgetQuestion

    units = flags.get("--nominal-units")
    if units is None:
        raise PlanError("--nominal-units: say how many patients are declared, or give a plan file")
    steps, reserved = _steps(flags)
    if reserved > MOST_STEPS:
        raise PlanError(f"{'--steps' if '--steps' in flags else '--rounds'}: {reserved} steps; at most {MOST_STEPS}")
    _check_bounds(flags)
    noise, delta = flags.get("--noise-multiplier"), flags.get("--delta", 1e-5)
    epsilon = None if noise is not None else flags.get("--epsilon", 8.0)
    question = BudgetQuestion("hospital", units, _rate(flags, units), reserved, delta, epsilon, noise)
    local_steps = flags.get("--local-steps", 1) if "--rounds" in flags else None
    return Asked((question,), steps, reserved, local_steps)


def _check_bounds(flags: dict[str, Any]) -> None:
    if "--noise-multiplier" in flags and "--epsilon" in flags:
        raise PlanError("--epsilon or --noise-multiplier: give one of the two; the other is worked out")
    for flag, most in MOST.items():
        if flag in flags and not 0 < flags[flag] <= most:
            raise PlanError(f"{flag} {flags[flag]:g}: must be above 0 and at most {most:g}")


def _rate(flags: dict[str, Any], units: int) -> float:
    sample_rate, expected_units = flags.get("--sample-rate"), flags.get("--expected-units")
    if (sample_rate is None) == (expected_units is None):
        raise PlanError("--sample-rate or --expected-units: give one of the two")
    rate = float(sample_rate if sample_rate is not None else (expected_units or 0.0) / units)
    if not 0 < rate <= 1:
        flag = "--sample-rate" if sample_rate is not None else "--expected-units"
        raise PlanError(f"{flag}: a sampling rate of {rate:g}; it must be above 0 and at most 1")
    return rate


def _steps(flags: dict[str, Any]) -> tuple[int, int]:
    """Return the planned steps, and those with all retries."""
    steps, rounds = flags.get("--steps"), flags.get("--rounds")
    if (steps is None) == (rounds is None):
        raise PlanError("--steps or --rounds: give one of the two")
    if steps is not None:
        for flag in ("--local-steps", "--retry-rounds"):
            if flag in flags:
                raise PlanError(f"{flag}: goes with --rounds; --steps already counts every step")
        return steps, steps
    local_steps = flags.get("--local-steps", 1)
    return rounds * local_steps, (rounds + flags.get("--retry-rounds", 2)) * local_steps


def from_plan(path: Path, flags: dict[str, Any]) -> Asked:
    """Return the questions of a plan's hospitals; each of `flags` stands in place of what the file says of them all."""
    from privfm.dp.outlook import BudgetQuestion

    plan, remarks = _what_if(path, flags)
    if not plan.hospitals:
        raise PlanError(f"{path}: has no [[hospitals]]; privfm plan check {path} reads them off the images")
    if plan.reserved_steps > MOST_STEPS:
        raise PlanError(f"{path}: {plan.reserved_steps} steps with all retries; at most {MOST_STEPS}")
    questions = tuple(
        BudgetQuestion(
            id=each.id,
            nominal_units=each.nominal_units,
            sample_rate=plan.sample_rate(each),
            steps=plan.reserved_steps,
            delta=plan.privacy.delta,
            epsilon=plan.epsilon(each),
            noise_multiplier=each.noise_multiplier,
        )
        for each in plan.hospitals
    )
    return Asked(
        questions,
        plan.planned_steps,
        plan.reserved_steps,
        plan.steps_per_round,
        plan,
        what_if=bool(flags),
        remarks=remarks,
    )


def _what_if(path: Path, flags: dict[str, Any]) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan as `flags` would have it, and remarks on that; PlanError names the key, or the flag."""
    from privfm.plan import parse_plan, read_plan

    if "--steps" in flags:
        raise PlanError(f"--steps: {path} counts in rounds; give --rounds, and --local-steps for the steps of one")
    _check_bounds(flags)
    content = read_plan(path)
    plan = written = parse_plan(content, str(path))
    for flag, key in PLAN_KEYS.items():
        if flag in flags:
            section, name = key.split(".")
            content.setdefault(section, {})[name] = flags[flag]
            plan = parse_plan(content, flag)
    if written.hospitals:
        content["hospitals"] = [_of_every_hospital(table, flags) for table in content["hospitals"]]
        plan = parse_plan(content, str(path))
    return plan, tuple(_set_aside(written, plan))


def _of_every_hospital(table: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return a hospital's table as flags would have it; with another epsilon its noise is worked out anew."""
    table = {key: value for key, value in table.items() if "--epsilon" not in flags or key not in OVER_EPSILON}
    if "--nominal-units" in flags:
        table["nominal_units"] = flags["--nominal-units"]
    if "--sample-rate" in flags or "--expected-units" in flags:
        table["sample_rate"] = _rate(flags, table["nominal_units"])
    if "--noise-multiplier" in flags:
        table["noise_multiplier"] = flags["--noise-multiplier"]
    return table


def _set_aside(written: Plan, plan: Plan) -> Iterator[str]:
    """Yield a remark where a hospital is asked about above its own limit, which training keeps."""
    pairs = zip(written.hospitals, plan.hospitals, strict=True)
    above = [old.id for old, new in pairs if old.epsilon is not None and plan.epsilon(new) > written.epsilon(old)]
    if above:
        yield f"{', '.join(above)}: asked about above their own epsilon in the plan, which training would keep to"


def after_ledgers(asked: Asked, path: Path) -> tuple[Asked, tuple[str, ...]]:
    """Return the questions with what the hospitals' ledgers under `path` say, and who has none there.

    Raises:
        InputError: there is no ledger, or more than one for a hospital that has no name.
        LedgerError: one of them is damaged.
    """
    from privfm.dp.ledger import Ledger
    from privfm_cli.spending import ledger_files

    found: dict[str, tuple[tuple[SampledGaussian, ...], RdpFilter | None]] = {}
    for file in ledger_files(path):
        with Ledger.open(file, read_only=True) as ledger:
            found[ledger.hospital] = ledger.events(), ledger.cap
    if asked.plan is None:
        if len(found) > 1:
            raise InputError(f"--after {path}: {len(found)} ledgers; give the one of the hospital in question")
        found = dict(zip([asked.questions[0].id], found.values(), strict=True))
    questions = tuple(replace(each, spent=found[each.id][0] if each.id in found else ()) for each in asked.questions)
    caps = {name: cap for name, (_, cap) in found.items() if cap is not None}
    return replace(asked, questions=questions, caps=caps), tuple(q.id for q in questions if q.id not in found)
