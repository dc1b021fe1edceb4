"""Outlooks: what each hospital's numbers cost, whoever works them out."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from privfm.dp import outlook
from privfm.dp.accounting import epsilon
from privfm.dp.calibration import calibrate_noise_under, cap_for_plan
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.outlook import BudgetQuestion, look_ahead, under_cap
from privfm.dp.workers import ask_workers

QUESTION = BudgetQuestion("north", 60, 0.5, 24, 1e-5, 8.0)
SPENT = (SampledGaussian(0.1, 2.0, 30), SampledGaussian(0.5, 3.0, 10))


def test_what_was_spent_counts_before_the_first_step() -> None:
    (found,) = look_ahead([replace(QUESTION, spent=SPENT)], curve_at=[24, 1, 12])
    one = SampledGaussian(0.5, found.noise_multiplier, 1)
    assert 0.995 * 8.0 <= found.epsilon <= 8.0
    assert found.epsilon == epsilon([*SPENT, one.repeated(24)], 1e-5)
    assert found.epsilon_after_second_run == epsilon([*SPENT, one.repeated(48)], 1e-5)
    assert [(point.steps, point.epsilon) for point in found.curve] == [
        (steps, epsilon([*SPENT, one.repeated(steps)], 1e-5)) for steps in (1, 12, 24)
    ]
    (fresh,) = look_ahead([QUESTION])
    assert found.noise_multiplier > fresh.noise_multiplier


def test_workers_answer_what_is_answered_here() -> None:
    questions = [replace(QUESTION, id=name, spent=spent) for name, spent in (("a", SPENT), ("b", ()), ("c", ()))]
    here = look_ahead(questions, curve_at=[3, 24], processes=1)
    assert look_ahead(questions, curve_at=[3, 24], processes=2) == here
    assert [each.question.id for each in here] == ["a", "b", "c"]
    assert None not in ask_workers(outlook._WORKER, [{"question": asdict(questions[0]), "curve_at": [3]}], 1)


def test_equal_budgets_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BudgetQuestion] = []
    answer = outlook._answer

    def counted(question: BudgetQuestion, curve_at: list[int]) -> outlook._Answer:
        asked.append(question)
        return answer(question, curve_at)

    monkeypatch.setattr(outlook, "_answer", counted)
    found = look_ahead([replace(QUESTION, id=f"h{i}", nominal_units=9 + i % 2) for i in range(30)])
    assert len(asked) == 1
    assert {each.expected_units for each in found} == {4.5, 5.0}


def test_a_cap_says_how_far_it_would_reach_beyond_what_is_planned() -> None:
    (planned,) = look_ahead([replace(QUESTION, epsilon=None, noise_multiplier=6.0, spent=SPENT[1:])])
    one = SampledGaussian(0.5, 6.0, 1)
    for cap in (RdpFilter.for_cap(9.0, 1e-5), RdpFilter.for_cap(3.0, 1e-5)):
        found = under_cap(planned, cap)
        assert cap.admits([*SPENT[1:], one.repeated(found.fitting)])
        assert not cap.admits([*SPENT[1:], one.repeated(found.fitting + 1)])
        assert found.steps == min(found.fitting, 24)
    assert under_cap(planned, RdpFilter.for_cap(9.0, 1e-5)).fitting > 24 > found.fitting


def spent_when_full(cap: RdpFilter, sample_rate: float, steps: int) -> float:
    noise_multiplier = calibrate_noise_under(cap, sample_rate=sample_rate, steps=steps)
    return epsilon([SampledGaussian(sample_rate, noise_multiplier, steps)], cap.delta)


def test_the_guide_says_at_which_epsilon_a_full_cap_refuses() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    table = guide.partition("| sampling rate | 8 steps |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 3
    for row in table:
        rate, *cells = (float(cell.partition("/")[0]) for cell in row.strip("| ").split("|"))
        unfitted = [float(cell.partition("/")[2]) for cell in row.strip("| ").split("|")[1:]]
        for steps, one, other in zip((8, 24, 100, 1000), cells, unfitted, strict=True):
            fitted = cap_for_plan(epsilon=5.0, delta=1e-5, sample_rate=rate, steps=steps)
            assert spent_when_full(fitted, rate, steps) == pytest.approx(one, abs=0.006)
            assert spent_when_full(RdpFilter.for_cap(5.0, 1e-5), rate, steps) == pytest.approx(other, abs=0.006)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilon": None}, "epsilon=None: needs an epsilon or a noise_multiplier"),
        ({"delta": 2.0}, r"delta=2\.0"),
        ({"spent": (SampledGaussian(0.5, 0.5, 100),)}, "already spent"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_what_cannot_be_answered_is_named(change: dict[str, object], says: str, processes: int) -> None:
    with pytest.raises(ValueError, match=says):
        look_ahead([QUESTION, replace(QUESTION, **change)], processes=processes)  # type: ignore[arg-type]
