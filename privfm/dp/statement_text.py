"""The privacy statement in the words of somebody who has to sign it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privfm.dp.figures import figure

if TYPE_CHECKING:
    from privfm.dp.statement import AuditBound, HospitalStatement, PrivacyStatement

__all__ = ["Section", "sections_of", "text_of"]

_WIDTH = 100

Table = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A titled part: sentences, a list, and a table whose first row is its head."""

    title: str
    sentences: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    table: Table = ()


def text_of(sections: Sequence[Section]) -> str:
    """Sections as plain text, wrapped at 100 columns; of a wider table columns go on below, beside its first again."""
    return "\n".join("\n".join(_lines(section)) for section in sections)


def _lines(section: Section) -> Iterator[str]:
    yield from (section.title, "-" * len(section.title))
    for sentence in section.sentences:
        yield from textwrap.wrap(sentence, _WIDTH)
    for item in section.items:
        yield from textwrap.wrap(item, _WIDTH, initial_indent="* ", subsequent_indent="  ")
    for table in _narrow(section.table):
        yield from _aligned(table)
        yield ""
    if not section.table:
        yield ""


def _aligned(table: Table) -> Iterator[str]:
    widths = _widths(table)
    for first, *others in table:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *numbers))


def _narrow(table: Table) -> Iterator[Table]:
    """A table in parts that each fit, every part with the first column."""
    widths, begin = _widths(table), 1
    while begin < len(widths):
        end = begin + 1
        while end < len(widths) and widths[0] + sum(2 + width for width in widths[begin : end + 1]) <= _WIDTH:
            end += 1
        yield tuple((row[0], *row[begin:end]) for row in table)
        begin = end


def _widths(table: Table) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def sections_of(statement: PrivacyStatement) -> tuple[Section, ...]:
    """The parts of a statement, most important first."""
    return tuple(part for part in (*_guarantee(statement), *_conduct(statement)) if part is not None)


def _guarantee(statement: PrivacyStatement) -> Iterator[Section | None]:
    yield _promise(statement)
    yield _spending(statement)
    yield _curve(statement)
    yield _composed(statement)
    yield _final_model(statement)
    yield _audits(statement)


def _promise(statement: PrivacyStatement) -> Section:
    title = f"Privacy statement of run {statement.run}"
    if not (statement.private and all(row.private for row in statement.hospitals)):
        return Section(
            title,
            (
                "NOT PRIVATE: this run, or another one on a hospital's ledger, had no noise, or its random coins were "
                "chosen by somebody, so that noise can be taken off again. It was a test. None of the numbers below is "
                "a guarantee.",
            ),
        )
    worst = max(statement.hospitals, key=lambda row: row.epsilon_spent)
    most, odds = max([worst.epsilon_spent, *(each.epsilon for each in statement.composed)]), f"{worst.delta:g}"
    alone = f"{figure(worst.epsilon_spent)} (at {worst.id})"
    seen = "".join(
        f" for one with images at {', '.join(each.hospitals)}, and {alone} for one at a single hospital"
        for each in statement.composed
    )
    return Section(
        title,
        (
            "Whoever sees everything that a hospital sent in the runs on its ledger can tell whether one "
            f"{statement.unit} took part, with all their images, only as well as (epsilon, delta)-differential privacy "
            "allows: epsilon is at most "
            f"{figure(most) + seen if statement.composed else alone}, delta is {odds}.",
            f"In words: whatever somebody concludes about a {statement.unit}, the odds of that conclusion are at most "
            f"e^epsilon = {_odds(most)} times what they would be had the "
            f"{statement.unit} never taken part, except with probability {odds}. A guarantee of this size is called "
            f"{_tier(most)} (Ponomareva et al. 2023: strong up to 1, reasonable up to 10, weak above).",
            "It does not hide what is true of patients in general, or that a hospital took part.",
        ),
    )


def _odds(epsilon: float) -> str:
    return f"{float(f'{math.exp(epsilon):.3g}'):,g}" if epsilon < 100 else "any number of"


def _spending(statement: PrivacyStatement) -> Section:
    unit = f"{statement.unit}s (declared)"
    settings = ("hospital", unit, "sampling rate", "noise multiplier", "clip norm", "steps", "left in reserve")
    head = (*settings, "epsilon, run", "epsilon, life", "run's limit", "life's limit", "delta")
    return Section(
        "What each hospital spent",
        tuple(_about_spending(statement)),
        table=(head, *(_row(row) for row in statement.hospitals)),
    )


def _tier(epsilon: float) -> str:
    return "strong" if epsilon <= 1.0 else "reasonable" if epsilon <= 10.0 else "weak"


def _about_spending(statement: PrivacyStatement) -> Iterator[str]:
    if statement.as_of is not None:
        yield f"As of {statement.as_of}, the newest entry of the ledgers."
    yield "Every step that was started is counted, also where a crash kept its result from being sent."
    yield (
        "A run's epsilon is exact when its length was fixed in advance; where a run was stopped early because of how "
        "it looked, rely on its limit."
    )
    asked_out = [row.id for row in statement.hospitals if row.asked_out]
    if asked_out:
        yield (
            f"Somebody asked out at {', '.join(asked_out)}. What was released before stays released and charged: "
            "nothing is refunded."
        )
    if any(row.earlier_steps for row in statement.hospitals):
        yield (
            "The lifetime's epsilon adds runs up as if all their settings had been fixed in advance; what holds "
            "whatever the reasons for a later run is the lifetime's limit, where there is one."
        )


def _row(row: HospitalStatement) -> tuple[str, ...]:
    return (
        row.id if row.private else f"{row.id} (NOT PRIVATE)",
        str(row.nominal_units),
        f"{row.sample_rate:g}",
        f"{row.noise_multiplier:.4g}",
        f"{row.clip_norm:g}",
        f"{row.steps_charged} of {row.steps_planned}",
        str(max(0, row.steps_reserved_for_retries - max(0, row.steps_charged - row.steps_planned))),
        figure(row.epsilon_run),
        figure(row.epsilon_spent),
        f"{row.epsilon_allowed:g}",
        "none" if row.lifetime_cap is None else f"{row.lifetime_cap:g}",
        f"{row.delta:g}",
    )


def _curve(statement: PrivacyStatement) -> Section:
    curves = {row.id: {point.delta: point.epsilon for point in row.curve} for row in statement.hospitals}
    shared = set.intersection(*(set(curve) for curve in curves.values()))
    deltas = sorted(shared, reverse=True)
    rows = ((name, *(figure(curve[delta]) for delta in deltas)) for name, curve in curves.items())
    return Section(
        "The whole trade-off",
        ("Lifetime epsilon for other choices of delta.",),
        table=(("hospital", *(f"delta {delta:g}" for delta in deltas)), *rows),
    )


def _composed(statement: PrivacyStatement) -> Section | None:
    if not statement.composed:
        return Section(
            "Patients at several hospitals",
            ("None were declared. With images at several hospitals, a patient's epsilon is larger than any row's.",),
        )
    return Section(
        "Patients at several hospitals",
        items=tuple(
            f"with images at {', '.join(each.hospitals)}: epsilon {figure(each.epsilon)} at delta {each.delta:g}"
            for each in statement.composed
        ),
    )


def _final_model(statement: PrivacyStatement) -> Section | None:
    if statement.final_model is None:
        return None
    bound = statement.final_model
    return Section(
        "For users of the final model only",
        (f"Under the assumptions listed, epsilon is at most {figure(bound.epsilon)} at delta {bound.delta:g}.",),
        items=bound.assumes,
    )


def _audits(statement: PrivacyStatement) -> Section:
    if not statement.audits:
        return Section("What attacks showed", ("No audit has been run.",))
    return Section(
        "What attacks showed",
        items=tuple(f"{each.audit}: {each.verdict}{_bound(each.bound)}" for each in statement.audits),
    )


def _bound(bound: AuditBound | None) -> str:
    if bound is None:
        return ""
    return (
        f"; epsilon is at least {bound.lower_bound:.3g} ({bound.confidence:.0%} confidence), and the attack could have "
        f"shown up to {bound.ceiling:.3g}"
    )


def _conduct(statement: PrivacyStatement) -> Iterator[Section]:
    yield Section(
        "How it was done",
        items=(
            f"unit: {statement.unit}, at most {statement.contribution_cap}",
            f"neighbouring data sets: {statement.adjacency}",
            f"mechanism: {statement.mechanism}",
            f"sampler: {statement.sampler}",
            f"accountant: {statement.accountant} ({statement.accountant_version}), privfm {statement.privfm_version}",
            f"randomness: {statement.randomness}",
        ),
    )
    yield Section("Who has to be trusted", items=statement.trust_model)
    yield Section("What was released", items=statement.releases)
    yield Section("Every time the data was touched", items=statement.data_touches)
    yield _list_or_none("Runs made to choose settings", statement.tuning_runs)
    yield _list_or_none("Public data used", statement.public_data)


def _list_or_none(title: str, items: tuple[str, ...]) -> Section:
    return Section(title, items=items) if items else Section(title, ("None.",))
