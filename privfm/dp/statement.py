"""The privacy statement: everything that a guarantee's reader has to know, as data and in plain words.

Fields after NIST SP 800-226 and Ponomareva et al. 2023 (arXiv 2303.00654, section 5.3). It is built from plain values
and ledger events, knows no plan, and works out every epsilon itself, so that no number in it is somebody's claim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privfm import __version__
from privfm.dp.accounting import accountant_version, epsilon, epsilon_curve
from privfm.dp.events import ADJACENCY, SampledGaussian, compose, events_to_json, total_steps
from privfm.dp.pld import least_delta
from privfm.dp.statement_text import Section, sections_of, text_of

__all__ = [
    "AuditBound",
    "AuditVerdict",
    "ComposedGuarantee",
    "CurvePoint",
    "EventRow",
    "FinalModelGuarantee",
    "HospitalStatement",
    "PrivacyStatement",
    "Verdict",
    "accountant_fields",
    "composed_guarantee",
    "hospital_statement",
    "worst_composition",
]

SAMPLER = "independent coin per unit and step (Poisson), probability sample_rate, coins kept secret"
MECHANISM = (
    "sum of per-unit gradients, each clipped to L2 norm clip_norm, plus Gaussian noise; divided by a public number"
)
_CURVE_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_MOST_CHOICES = 200


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EventRow(_Part):
    """One mechanism event, as in the ledger."""

    mechanism: str
    sample_rate: float
    noise_multiplier: float
    steps: int


class CurvePoint(_Part):
    """One point of the privacy curve."""

    delta: float
    epsilon: float


class HospitalStatement(_Part):
    """One hospital's row.

    `epsilon_run` is for this run alone, `epsilon_spent` for everything in its ledger; `epsilon_allowed` is what the
    plan permits this run, `lifetime_cap` what the ledger permits for ever. `asked_out` says that somebody did since,
    which refunds nothing.
    """

    id: str
    nominal_units: int
    sample_rate: float
    noise_multiplier: float
    clip_norm: float
    steps_planned: int
    steps_charged: int
    steps_reserved_for_retries: int
    delta: float
    epsilon_run: float
    epsilon_spent: float
    epsilon_allowed: float
    lifetime_cap: float | None
    curve: tuple[CurvePoint, ...]
    events: tuple[EventRow, ...]
    earlier_steps: int
    private: bool
    asked_out: bool = False


class ComposedGuarantee(_Part):
    """For a patient with images at all of `hospitals`."""

    hospitals: tuple[str, ...]
    epsilon: float
    delta: float


class FinalModelGuarantee(_Part):
    """For somebody who only ever sees sums over hospitals; weaker trust assumptions void it."""

    epsilon: float
    delta: float
    assumes: tuple[str, ...]


class AuditBound(_Part):
    """What an attack showed: epsilon is at least `lower_bound` with that confidence; it could have shown `ceiling`."""

    lower_bound: float
    ceiling: float
    confidence: float


Verdict = Literal["LEAK", "NO LEAK DETECTED", "INCONCLUSIVE"]


class AuditVerdict(_Part):
    """What an audit found; with a bound on epsilon where it looks for one."""

    audit: str
    verdict: Verdict
    bound: AuditBound | None = None


class PrivacyStatement(_Part):
    """A run's privacy statement. `private` is False when coins were injected or noise left out: no guarantee holds.

    Args:
        unit: whose presence is hidden, `patient` or `image`.
        contribution_cap: how much of one unit enters a step, in words.
        trust_model: whom a patient need not trust, and for what, in words; one sentence each.
        releases, data_touches, tuning_runs, public_data: complete lists, in words; `()` says "none".
        randomness: where coins come from.
        as_of: date of the newest entry that the ledgers held.
    """

    version: int = 1
    privfm_version: str = __version__
    run: str
    private: bool
    unit: str
    contribution_cap: str
    adjacency: str = ADJACENCY
    mechanism: str = MECHANISM
    sampler: str = SAMPLER
    accountant: str
    accountant_version: str
    as_of: str | None = None
    hospitals: Annotated[tuple[HospitalStatement, ...], Field(min_length=1)]
    composed: tuple[ComposedGuarantee, ...] = ()
    final_model: FinalModelGuarantee | None = None
    trust_model: tuple[str, ...]
    releases: tuple[str, ...]
    data_touches: tuple[str, ...]
    tuning_runs: tuple[str, ...] = ()
    public_data: tuple[str, ...] = ()
    randomness: str
    audits: tuple[AuditVerdict, ...] = ()

    def to_json(self) -> str:
        """The statement as indented JSON."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> PrivacyStatement:
        """The inverse of `to_json`.

        Raises:
            ValueError: naming the first key that is wrong.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"statement: {key}: {first['msg'].lower()}") from None

    def sections(self) -> tuple[Section, ...]:
        """The statement for people: titled paragraphs and tables, for a page to lay out."""
        return sections_of(self)

    def to_text(self) -> str:
        """The statement for people, as plain text."""
        return text_of(self.sections())


def hospital_statement(
    *,
    hospital: str,
    nominal_units: int,
    clip_norm: float,
    event: SampledGaussian,
    charged: Sequence[SampledGaussian],
    earlier: Sequence[SampledGaussian] = (),
    steps_reserved_for_retries: int,
    delta: float,
    epsilon_allowed: float,
    lifetime_cap: float | None = None,
    private: bool = True,
    asked_out: bool = False,
    accountant: str = "pld",
) -> HospitalStatement:
    """A hospital's row, with every epsilon worked out from events.

    Args:
        event: the planned steps, without the reserve.
        charged: what the ledger charged to this run.
        earlier: everything else in the ledger: other runs, before or since.
        private: False when coins were injected or noise left out, in this run or another one of the ledger.
        asked_out: whether somebody asked out of a run of the ledger.
    """
    lifetime = compose(charged, earlier)
    deltas = sorted({delta, *(d for d in _CURVE_DELTAS if d >= least_delta(lifetime))}, reverse=True)
    return HospitalStatement(
        id=hospital,
        nominal_units=nominal_units,
        sample_rate=event.sample_rate,
        noise_multiplier=event.noise_multiplier,
        clip_norm=clip_norm,
        steps_planned=event.steps,
        steps_charged=total_steps(charged),
        steps_reserved_for_retries=steps_reserved_for_retries,
        delta=delta,
        epsilon_run=epsilon(charged, delta, accountant),
        epsilon_spent=epsilon(lifetime, delta, accountant),
        epsilon_allowed=epsilon_allowed,
        lifetime_cap=lifetime_cap,
        curve=tuple(CurvePoint(delta=d, epsilon=e) for d, e in epsilon_curve(lifetime, deltas, accountant)),
        events=tuple(EventRow(**row) for row in events_to_json(lifetime)),
        earlier_steps=total_steps(earlier),
        private=private,
        asked_out=asked_out,
    )


def composed_guarantee(
    ledgers: dict[str, Sequence[SampledGaussian]], delta: float, accountant: str = "pld"
) -> ComposedGuarantee:
    """The guarantee of a patient whose images lie at every hospital of `ledgers` (id -> all events of its ledger).

    >>> same = [SampledGaussian(0.1, 2.0, 100)]
    >>> one, both = composed_guarantee({"a": same}, 1e-5), composed_guarantee({"a": same, "b": same}, 1e-5)
    >>> one.epsilon < both.epsilon < 2 * one.epsilon
    True
    """
    spent = epsilon(compose(*ledgers.values()), delta, accountant)
    return ComposedGuarantee(hospitals=tuple(ledgers), epsilon=spent, delta=delta)


def worst_composition(
    ledgers: Mapping[str, Sequence[SampledGaussian]], places: int, delta: float, accountant: str = "pld"
) -> ComposedGuarantee | None:
    """The guarantee of a patient with images at as many as `places` hospitals, at the worst choice of them.

    None where that is fewer than two. Beyond a few hundred choices the composition of all hospitals stands in: more
    events only cost more.

    >>> events = {"a": [SampledGaussian(0.1, 2.0, 100)], "b": [SampledGaussian(0.1, 2.0, 9)], "c": []}
    >>> worst_composition(events, 2, 1e-5).hospitals
    ('a', 'b')
    """
    places = min(places, len(ledgers))
    if places < 2:
        return None
    choices = combinations(ledgers, places) if comb(len(ledgers), places) <= _MOST_CHOICES else iter([tuple(ledgers)])
    composed = (composed_guarantee({name: ledgers[name] for name in choice}, delta, accountant) for choice in choices)
    return max(composed, key=lambda guarantee: guarantee.epsilon)


def accountant_fields(accountant: str = "pld") -> dict[str, str]:
    """The two fields that name the accountant, for `PrivacyStatement(**accountant_fields(), ...)`."""
    return {"accountant": accountant, "accountant_version": accountant_version(accountant)}
