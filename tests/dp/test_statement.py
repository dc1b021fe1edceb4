"""The privacy statement: every field there, every number worked out, and words that a reader cannot misunderstand."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from privfm.dp.accounting import epsilon
from privfm.dp.events import SampledGaussian, events_from_json
from privfm.dp.statement import (
    AuditBound,
    AuditVerdict,
    FinalModelGuarantee,
    HospitalStatement,
    PrivacyStatement,
    accountant_fields,
    composed_guarantee,
    hospital_statement,
)

STEP = SampledGaussian(0.25, 4.0, 100)
CHARGED = [STEP.repeated(1), SampledGaussian(0.25, 4.0, 10)]
EARLIER = [SampledGaussian(0.25, 6.0, 50)]


def row(hospital: str = "north", **changes: Any) -> HospitalStatement:
    usual: dict[str, Any] = {
        "nominal_units": 80,
        "clip_norm": 1.0,
        "event": STEP,
        "charged": CHARGED,
        "steps_reserved_for_retries": 20,
        "delta": 1e-5,
        "epsilon_allowed": 8.0,
    }
    return hospital_statement(hospital=hospital, **(usual | changes))


def statement(**changes: Any) -> PrivacyStatement:
    usual: dict[str, Any] = {
        "run": "run-7",
        "private": True,
        "unit": "patient",
        "contribution_cap": "4 images in 2 views a step, averaged, then clipped",
        **accountant_fields("pld"),
        "hospitals": (row("north"), row("south", earlier=EARLIER, lifetime_cap=10.0)),
        "trust_model": ("Nobody has to be trusted for the epsilon of a row.",),
        "releases": ("masked, noised, quantised updates, one a round",),
        "data_touches": ("training steps, all charged",),
        "tuning_runs": ("run-6, charged",),
        "public_data": ("procedural images",),
        "randomness": "the operating system's entropy",
    }
    return PrivacyStatement(**(usual | changes))


def test_every_epsilon_is_worked_out_from_events() -> None:
    plain, experienced = statement().hospitals
    assert plain.epsilon_run == plain.epsilon_spent == epsilon(CHARGED, 1e-5)
    assert experienced.epsilon_spent == epsilon([*CHARGED, *EARLIER], 1e-5) > experienced.epsilon_run
    assert (plain.steps_planned, plain.steps_charged, plain.earlier_steps) == (100, 110, 0)
    for each in (plain, experienced):
        events = events_from_json([event.model_dump() for event in each.events])
        for point in each.curve:
            assert point.epsilon == epsilon(events, point.delta)
        assert {1e-3, 1e-5, 1e-8} <= {point.delta for point in each.curve}


def test_json_carries_every_field_that_a_reader_has_to_have() -> None:
    data = json.loads(statement().to_json())
    assert {
        "unit", "contribution_cap", "adjacency", "mechanism", "sampler", "accountant", "accountant_version",
        "trust_model", "releases", "data_touches", "tuning_runs", "public_data", "randomness", "audits",
        "composed", "private",
    } <= data.keys()  # fmt: skip
    assert {
        "id", "nominal_units", "sample_rate", "noise_multiplier", "clip_norm", "steps_planned", "steps_charged",
        "steps_reserved_for_retries", "delta", "epsilon_run", "epsilon_spent", "epsilon_allowed", "curve", "events",
        "earlier_steps", "lifetime_cap",
    } <= data["hospitals"][0].keys()  # fmt: skip


FOUND = (
    AuditVerdict(
        audit="canaries",
        verdict="NO LEAK DETECTED",
        bound=AuditBound(lower_bound=0.4, ceiling=6.1, confidence=0.95),
    ),
    AuditVerdict(audit="membership", verdict="LEAK"),
)


def test_json_gives_back_the_same_statement() -> None:
    whole = statement(
        composed=(composed_guarantee({"north": CHARGED, "south": CHARGED}, 1e-5),),
        audits=FOUND,
        final_model=FinalModelGuarantee(epsilon=1.2, delta=1e-5, assumes=("all hospitals add their noise",)),
    )
    assert PrivacyStatement.from_json(whole.to_json()) == whole


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"unit": None}, "unit"),
        ({"hospitals": []}, "hospitals"),
        ({"epsilon": 3.0}, "epsilon"),
        ({"audits": [{"audit": "x"}]}, "audits.0"),
    ],
)
def test_a_wrong_key_is_named_in_one_line(change: dict[str, Any], key: str) -> None:
    data = json.loads(statement().to_json()) | change
    with pytest.raises(ValueError, match=f"statement: {key}") as error:
        PrivacyStatement.from_json(json.dumps(data))
    assert "\n" not in str(error.value)


def test_the_text_says_the_worst_epsilon_first() -> None:
    whole = statement()
    opening = " ".join(whole.to_text().split())
    worst = max(whole.hospitals, key=lambda each: each.epsilon_spent)
    assert f"epsilon is at most {worst.epsilon_spent:.3f} (at {worst.id}), delta is 1e-05" in opening
    assert "NOT PRIVATE" not in opening


@pytest.mark.parametrize(("noise", "word"), [(20.0, "strong"), (3.0, "reasonable"), (0.7, "weak")])
def test_the_size_of_the_guarantee_has_a_word(noise: float, word: str) -> None:
    whole = statement(hospitals=(row(charged=[SampledGaussian(0.25, noise, 100)]),))
    assert f"is called {word} (" in " ".join(whole.to_text().split())


def test_hospitals_with_different_deltas_share_a_table() -> None:
    whole = statement(hospitals=(row("north"), row("south", delta=3e-6)))
    (head, *rows) = next(part for part in whole.sections() if part.title == "The whole trade-off").table
    assert "delta 3e-06" not in head
    assert [len(each) for each in rows] == [len(head)] * 2


def test_injected_coins_void_everything_in_the_first_sentence() -> None:
    text = statement(private=False, hospitals=(row(private=False),)).to_text()
    assert text.splitlines()[2].startswith("NOT PRIVATE")
    assert "epsilon is at most" not in text
    before = statement(hospitals=(row(), row("south", private=False))).to_text()  # a test run on a ledger, earlier
    assert before.splitlines()[2].startswith("NOT PRIVATE")
    assert "north (NOT PRIVATE)" in text


def test_the_text_leaves_nothing_out() -> None:
    text = statement().to_text()
    for wanted in (
        "run-7", "4 images in 2 views", "add-or-remove-one-unit", "Poisson", "dp-accounting",
        "operating system's entropy",
        "Nobody has to be trusted", "one a round", "training steps, all charged", "run-6, charged", "procedural images",
        "No audit has been run", "None were declared", "110 of 100", "noise multiplier", "in reserve",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_what_is_not_proved_is_said() -> None:
    assert "stopped early" in statement().to_text()
    assert "whatever the reasons for a later run" in " ".join(statement().to_text().split())
    fresh = statement(hospitals=(row(),)).to_text()
    assert "whatever the reasons for a later run" not in " ".join(fresh.split())


def test_lists_that_are_empty_say_none() -> None:
    parts = {part.title: part for part in statement(tuning_runs=(), public_data=()).sections()}
    assert parts["Runs made to choose settings"].sentences == ("None.",)
    assert parts["Public data used"].sentences == ("None.",)


def test_tables_are_tables() -> None:
    for part in statement().sections():
        assert len({len(line) for line in part.table}) <= 1
    assert all(
        len(line) <= 100
        for line in statement().to_text().splitlines()
        if not line.startswith(("north", "south", "hosp"))
    )


def test_optional_parts_appear_when_there_is_something_to_say() -> None:
    whole = statement(
        composed=(composed_guarantee({"north": CHARGED, "south": CHARGED}, 1e-5),),
        audits=FOUND,
        final_model=FinalModelGuarantee(epsilon=1.2, delta=1e-5, assumes=("all hospitals add their noise",)),
    )
    text = " ".join(whole.to_text().split())
    assert "membership: LEAK" in text
    both = epsilon([*CHARGED, *CHARGED], 1e-5)
    assert f"with images at north, south: epsilon {both:.3f}" in text
    assert f"epsilon is at most {both:.3f} for one with images at north, south, and " in text  # before any smaller one
    assert f"e^epsilon = {math.exp(both):,.3g} times" in text
    told = "epsilon is at least 0.4 (95% confidence), and the attack could have shown up to 6.1"
    assert f"canaries: NO LEAK DETECTED; {told}" in text
    assert "For users of the final model only" in text


def test_tables_fit_the_page_and_every_part_names_the_hospital() -> None:
    lines = statement(hospitals=tuple(row(f"university-hospital-{i}") for i in range(3))).to_text().splitlines()
    assert max(map(len, lines)) <= 100
    heads = [line for line in lines if line.startswith("hospital ")]
    assert any("noise multiplier" in line for line in heads)
    assert any("life's limit" in line for line in heads)
    assert sum(line.startswith("university-hospital-2 ") for line in lines) == len(heads) >= 3


def test_a_tiny_epsilon_is_no_zero() -> None:
    tiny = statement(hospitals=(row(charged=[SampledGaussian(1.0, 1e4, 1)]),))
    assert 0 < tiny.hospitals[0].epsilon_spent < 5e-4
    said = tiny.to_text()
    assert f"{tiny.hospitals[0].epsilon_spent:.3g}" in said
    assert "epsilon is at most 0.000" not in said


def test_a_statement_says_of_when_it_is() -> None:
    assert "As of 2026-01-01T00:00:00+00:00, the newest entry" in statement(as_of="2026-01-01T00:00:00+00:00").to_text()
