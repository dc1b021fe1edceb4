"""`privfm budget plan`: what the library says of one hospital or of many, on any machine."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from privfm_cli.budget_plot import COLOURS, DASHES, MOST_CURVES, WHY_STOPPED
from privfm_cli.main import main

from privfm.dp.accounting import epsilon
from privfm.dp.calibration import calibrate_noise_under
from privfm.dp.events import SampledGaussian
from privfm.dp.filter import RdpFilter
from privfm.dp.forecast import forecast
from privfm.dp.ledger import Ledger
from privfm.dp.mechanism import AdaptiveClipping, StepMechanism

RATES = ["budget", "plan", "--nominal-units", "60", "--sample-rate", "0.5"]
PLAN = """
[federation]
rounds = 10
local_steps = 2

[[hospitals]]
id = "north"
nominal_units = 600
sample_rate = 0.1

[[hospitals]]
id = "south"
nominal_units = 60
epsilon = 4.0

[[hospitals]]
id = "west"
nominal_units = 60
epsilon = 4.0
"""


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def test_a_target_is_met_and_never_exceeded(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["budget", "plan", "--nominal-units", "60", "--expected-units", "30"]
    found = planned(capsys, *rates, "--rounds", "10", "--local-steps", "2", "--epsilon", "4")
    (hospital,) = found["hospitals"]
    event = SampledGaussian(0.5, hospital["noise_multiplier"], 24)
    assert (found["steps"], found["steps_with_retries"]) == (20, 24)
    assert hospital["epsilon"] == epsilon([event], 1e-5)
    assert 3.98 <= hospital["epsilon"] <= 4.0
    assert hospital["noise_share"] == pytest.approx(hospital["noise_multiplier"] / 30)


def test_the_cost_of_a_given_noise(capsys: pytest.CaptureFixture[str]) -> None:
    (hospital,) = planned(capsys, *RATES, "--steps", "8", "--noise-multiplier", "2")["hospitals"]
    assert hospital["epsilon"] == epsilon([SampledGaussian(0.5, 2.0, 8)], 1e-5)
    assert hospital["epsilon_allowed"] is None


def test_the_curve_and_the_second_run_are_the_accountants(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *RATES, "--rounds", "30", "--local-steps", "2", "--noise-multiplier", "3")
    (hospital,) = found["hospitals"]
    one = SampledGaussian(0.5, 3.0, 1)
    for point in hospital["curve"]:
        assert point["steps"] == 2 * point["rounds"]
        assert point["epsilon"] == epsilon([one.repeated(point["steps"])], 1e-5)
    assert [point["rounds"] for point in hospital["curve"]] == [1, *range(3, 31, 3), 32]
    assert hospital["curve"][-1]["epsilon"] == hospital["epsilon"]
    assert hospital["epsilon_after_second_run"] == epsilon([one.repeated(128)], 1e-5)


def test_a_table_shows_the_curve_and_what_a_second_run_would_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RATES, "--steps", "8", "--noise-multiplier", "2"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.partition("steps  epsilon\n")[2].splitlines()]
    assert [int(steps) for steps, _ in rows] == [1, 3, 5, 6, 8]
    assert rows[-1][1] == f"{epsilon([SampledGaussian(0.5, 2.0, 8)], 1e-5):.3f}"
    assert f"a second such run  epsilon {epsilon([SampledGaussian(0.5, 2.0, 16)], 1e-5):.4f}" in printed.out
    assert "no forecast" in printed.err


def test_a_forecast_needs_the_number_of_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    noise = ["--rounds", "10", "--noise-multiplier", "2"]
    without = planned(capsys, *RATES, *noise)
    assert without["hospitals"][0]["forecast"] is None
    assert ["--parameters" in line for line in without["left_out"]] == [True]
    found = planned(capsys, *RATES, *noise, "--parameters", "5000", "--hospitals", "5")["hospitals"][0]["forecast"]
    wanted = forecast(
        parameters=5000, nominal_units=60, sample_rate=0.5, noise_multiplier=2.0, steps=10, hospitals=5
    )  # the retries are a reserve: they teach nothing
    assert found["noise_to_signal"] == wanted.noise_to_signal
    assert found["verdict"] == wanted.verdict


def test_every_hospital_of_a_plan_has_its_own_numbers(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, "budget", "plan", str(plan_file), "--parameters", "5000")
    north, south, west = found["hospitals"]
    for hospital, rate, allowed in ((north, 0.1, 8.0), (south, 0.5, 4.0), (west, 0.5, 4.0)):
        event = SampledGaussian(rate, hospital["noise_multiplier"], 24)
        assert hospital["epsilon"] == epsilon([event], 1e-5)
        assert 0.995 * allowed <= hospital["epsilon"] <= allowed
        assert hospital["epsilon_allowed"] == allowed
        assert hospital["forecast"]["noise_to_signal"] == pytest.approx(
            hospital["noise_multiplier"] * math.sqrt(5000 / 3 / 20) / (rate * hospital["nominal_units"])
        )
    assert south["noise_multiplier"] == west["noise_multiplier"]


def test_an_adaptive_clip_norm_adds_noise_to_the_forecast(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = planned(capsys, "budget", "plan", str(plan_file), "--parameters", "5000")["hospitals"]
    plan_file.write_text("[privacy]\nclip_quantile = 0.5\n" + PLAN)
    adapted = planned(capsys, "budget", "plan", str(plan_file), "--parameters", "5000")["hospitals"]
    for before, after, rate in zip(fixed, adapted, (0.1, 0.5, 0.5), strict=True):
        mechanism = mechanism_with(0.5, after["noise_multiplier"], rate, after["nominal_units"])
        ratio = mechanism.gradient_noise_multiplier / after["noise_multiplier"]
        assert 1.001 < ratio < 1.16
        assert after["noise_multiplier"] == before["noise_multiplier"]
        assert after["noise_share"] == pytest.approx(ratio * before["noise_share"])
        assert after["forecast"]["noise_to_signal"] == pytest.approx(ratio * before["forecast"]["noise_to_signal"])


def mechanism_with(quantile: float, noise_multiplier: float, rate: float, units: int) -> StepMechanism:
    return StepMechanism(rate, units, 1.0, noise_multiplier, AdaptiveClipping(quantile, start=1.0))


def test_a_plans_parameters_are_counted(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from privfm.federation.network import build_learner, trained
    from privfm.plan import parse_plan, read_plan

    parameters = trained(build_learner(parse_plan(read_plan(plan_file))).network).numel()
    counted = planned(capsys, "budget", "plan", str(plan_file))
    assert (
        counted["hospitals"]
        == planned(capsys, "budget", "plan", str(plan_file), "--parameters", str(parameters))["hospitals"]
    )


def test_a_plan_for_training_needs_the_same_noise(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from privfm.federation.planning import complete_plan
    from privfm.plan import parse_plan, read_plan

    whole = complete_plan(parse_plan(read_plan(plan_file)), {}, clip_norm=1.0)
    found = planned(capsys, "budget", "plan", str(plan_file), "--parameters", "5000")
    assert [each["noise_multiplier"] for each in found["hospitals"]] == [
        each.noise_multiplier for each in whole.hospitals
    ]


def test_many_different_budgets_have_curves_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "many.toml"
    rows = (f'[[hospitals]]\nid = "h{i}"\nnominal_units = 9\nnoise_multiplier = {5 + i / 100}\n' for i in range(24))
    path.write_text("".join(rows))
    few = planned(capsys, "budget", "plan", str(path), "--parameters", "10")
    assert few["hospitals"][0]["curve"] == []
    assert "--curve" in few["left_out"][0]
    assert planned(capsys, "budget", "plan", str(path), "--parameters", "10", "--curve")["hospitals"][0]["curve"]


@pytest.mark.parametrize(
    ("flags", "like"),
    [
        (["--rounds", "100"], PLAN.replace("rounds = 10", "rounds = 100")),
        (["--local-steps", "3"], PLAN.replace("local_steps = 2", "local_steps = 3")),
        (["--retry-rounds", "0"], PLAN.replace("rounds = 10", "rounds = 10\nretry_rounds = 0")),
        (["--epsilon", "6"], "[privacy]\nepsilon = 6.0\n" + PLAN.replace("epsilon = 4.0", "")),
        (["--delta", "1e-6"], "[privacy]\ndelta = 1e-6\n" + PLAN),
        (["--sample-rate", "0.2"], "[privacy]\nsample_rate = 0.2\n" + PLAN.replace("sample_rate = 0.1", "")),
        (["--expected-units", "30"], PLAN.replace("sample_rate = 0.1", "sample_rate = 0.05")),
        (
            ["--nominal-units", "90"],
            PLAN.replace("nominal_units = 600", "nominal_units = 90").replace("= 60\n", "= 90\n"),
        ),
    ],
)
def test_flags_beside_a_plan_ask_what_if_of_every_hospital(
    flags: list[str], like: str, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.toml"
    other.write_text(like)
    rest = ["--parameters", "10", "--no-curve"]
    wanted = planned(capsys, "budget", "plan", str(other), *rest)
    assert planned(capsys, "budget", "plan", str(plan_file), *flags, *rest) == wanted
    assert planned(capsys, "budget", "plan", str(plan_file), *rest) != wanted


def test_a_noise_for_a_whole_plan_is_told_its_cost(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["budget", "plan", str(plan_file), "--parameters", "10", "--no-curve"]
    found = planned(capsys, *arguments, "--noise-multiplier", "2.5")
    for hospital, rate in zip(found["hospitals"], (0.1, 0.5, 0.5), strict=True):
        assert hospital["epsilon"] == epsilon([SampledGaussian(rate, 2.5, 24)], 1e-5)
    assert [line.split(",")[0] for line in found["left_out"]] == [
        f"{name}: epsilon {found['hospitals'][1]['epsilon']:.3f}" for name in ("south", "west")
    ]
    assert "above the 4 that the plan allows" in found["left_out"][0]
    # with another epsilon the noise that the file gives is worked out anew
    plan_file.write_text(PLAN.replace("sample_rate = 0.1", "sample_rate = 0.1\nnoise_multiplier = 9.0"))
    assert 2.985 <= planned(capsys, *arguments, "--epsilon", "3")["hospitals"][0]["epsilon"] <= 3


def test_a_limit_of_a_hospital_that_is_asked_beyond_is_told(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["budget", "plan", str(plan_file), "--parameters", "10", "--no-curve"]
    assert main([*arguments, "--epsilon", "6"]) == 0
    assert capsys.readouterr().err == (
        "south, west: asked about above their own epsilon in the plan, which training would keep to\n"
    )
    assert main([*arguments, "--epsilon", "3"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "9"], "--steps: {} counts in rounds; give --rounds"),
        (["--hospitals", "9"], "--hospitals: averaged are those of {};"),
        (["--epsilon", "4", "--noise-multiplier", "3"], "--epsilon or --noise-multiplier: give one of the two"),
        (["--epsilon", "101"], "--epsilon 101: must be above 0 and at most 100"),
        (["--rounds", "200000"], "--rounds: federation.rounds: input should be less than"),
        (["--rounds", "100000", "--local-steps", "99"], "{}: 9900198 steps with all retries; at most 1000000"),
        (["--expected-units", "61"], "--expected-units: a sampling rate of 1.01667"),
    ],
)
def test_what_cannot_be_asked_of_a_plan_is_one_line(
    arguments: list[str], says: str, plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["budget", "plan", str(plan_file), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"privfm: error: {says.format(plan_file)}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(("units", "delta", "take"), [(1000, "0.01", "0.0001"), (600, "0.0002", "0.0001")])
def test_a_delta_that_is_large_for_so_many_patients_is_remarked_upon(
    units: int, delta: str, take: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["budget", "plan", "--nominal-units", str(units), "--sample-rate", "0.1", "--steps", "9", "--no-curve"]
    assert main([*arguments, "--parameters", "10", "--delta", delta]) == 0
    warned = capsys.readouterr().err
    assert f"delta {delta} is not well under 1 / {units} patients" in warned
    assert f"take {take} or less" in warned
    assert ("training refuses it" in warned) == (float(delta) * units >= 1)
    assert warned.count("\n") == 1
    assert main([*arguments, "--parameters", "10", "--delta", take]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--steps", "4", "--retry-rounds", "1"], "--retry-rounds: goes with --rounds"),
        (["--steps", "4", "--epsilon", "4", "--noise-multiplier", "2"], "--epsilon or --noise-multiplier"),
        (["--steps", "4", "--epsilon", "101"], "--epsilon 101"),
        (["--steps", "1000001"], "--steps: 1000001 steps; at most 1000000"),
        (["--rounds", "1000", "--local-steps", "1000"], "--rounds: 1002000 steps; at most 1000000"),
        (["--steps", "4", "--delta", "1e-16"], "this cannot be planned: delta=1e-16"),
        (["--steps", "4", "--plot", "curve.pdf"], "--plot curve.pdf: must end in .svg or .png"),
        (["--steps", "4", "--plot", "none/curve.png"], "--plot none/curve.png: no folder none"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RATES, *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_plan_that_spends_too_much_or_names_nobody_is_refused(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file.write_text(PLAN.replace("sample_rate = 0.1", "noise_multiplier = 0.5"))
    assert main(["budget", "plan", str(plan_file)]) == 2
    assert "north: noise_multiplier 0.5 would spend" in capsys.readouterr().err
    plan_file.write_text("")
    assert main(["budget", "plan", str(plan_file)]) == 2
    assert "has no [[hospitals]]" in capsys.readouterr().err


def test_what_ledgers_have_spent_counts(plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spent = SampledGaussian(0.5, 4.0, 6)
    for name in ("south", "north"):
        with Ledger.create(tmp_path / f"{name}.sqlite", name) as ledger:
            ledger.open_run("run-1", bytes(32), [spent], rounds=5, retry_rounds=1)
            if name == "south":
                ledger.charge("run-1", 0, 0, context=bytes(32))
    arguments = ["budget", "plan", str(plan_file), "--parameters", "10", "--after", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert "taken to have spent nothing: west\n" in printed.err
    north, south, west = json.loads(printed.out)["hospitals"]
    assert [each["steps_spent_before"] for each in (north, south, west)] == [0, 6, 0]
    event = SampledGaussian(0.5, south["noise_multiplier"], 24)
    assert 0.995 * 4 <= south["epsilon"] == epsilon([spent, event], 1e-5) <= 4
    assert west["noise_multiplier"] < south["noise_multiplier"]
    alone = ["--steps", "24", "--epsilon", "4", "--after", str(tmp_path / "south.sqlite")]
    assert planned(capsys, *RATES, *alone)["hospitals"][0]["noise_multiplier"] == south["noise_multiplier"]
    assert main([*RATES, *alone]) == 0
    assert "steps              24, after 6 on the ledger" in capsys.readouterr().out
    for more, says, code in (
        (["--after", str(tmp_path)], "2 ledgers; give the one", 2),
        (["--epsilon", "1"], f"epsilon {epsilon([spent], 1e-5):.3f} is already spent, of 1", 3),
    ):
        assert main([*RATES, *alone, *more]) == code
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert main([*arguments, "--epsilon", "1"]) == 3
    assert "south: epsilon 1." in capsys.readouterr().err


def test_a_lifetime_cap_that_would_stop_the_plan_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cap, path = RdpFilter.for_cap(4.0, 1e-5), tmp_path / "north.sqlite"
    Ledger.create(path, "north", cap=cap).shut()
    arguments = [*RATES, "--steps", "24", "--after", str(path)]
    assert main([*arguments, "--epsilon", "4", "--json"]) == 0
    printed = capsys.readouterr()
    (hospital,) = json.loads(printed.out)["hospitals"]
    under = hospital["under_lifetime_cap"]
    step, enough = hospital["noise_multiplier"], under["noise_multiplier"]
    assert under["cap"] == 4.0
    assert under["steps"] == cap.steps_that_fit(SampledGaussian(0.5, step, 1)) < 24
    assert cap.steps_that_fit(SampledGaussian(0.5, enough, 1)) == 24
    assert f"has room for {under['steps']} of 24 steps; all would with noise" in printed.err
    assert main([*arguments, "--noise-multiplier", f"{enough + 1e-4:.4f}"]) == 0
    assert "lifetime cap" not in capsys.readouterr().err
    with Ledger.open(path) as ledger:
        ledger.open_run("run-1", bytes(32), [SampledGaussian(0.5, enough, 24)], rounds=1, retry_rounds=0)
        ledger.charge("run-1", 0, 0, context=bytes(32))
    assert main([*arguments, "--noise-multiplier", "1"]) == 0
    assert "of 4 has room for 0 of 24 steps" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "begins"), [("curve.png", b"\x89PNG"), ("curve.svg", b"<?xml")])
def test_curves_are_drawn(
    name: str, begins: bytes, plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert main(["budget", "plan", str(plan_file), "--parameters", "10", "--plot", str(path)]) == 0
    content = path.read_bytes()
    assert content.startswith(begins)
    if name.endswith("svg"):
        assert all(
            f"<!-- {word}" in content.decode()
            for word in ("north: 7.9", "south, west: 4.00", "allowed: 8", "allowed: 4", "rounds", "epsilon")
        )
    assert capsys.readouterr().err == f"drawn: {path}\n"


def drawn(path: Path, *arguments: str) -> list[str]:
    """Texts of a figure, and nothing else; matplotlib notes each beside its glyphs."""
    assert main(["budget", "plan", *arguments, "--parameters", "10", "--plot", str(path)]) == 0
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def test_where_a_lifetime_cap_stops_a_curve_is_marked(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledgers = tmp_path / "ledgers"
    ledgers.mkdir()
    for name, epsilon_kept in (("north", 5.0), ("south", 3.0)):
        Ledger.create(ledgers / f"{name}.sqlite", name, cap=RdpFilter.for_cap(epsilon_kept, 1e-5)).shut()
    arguments = [str(plan_file), "--after", str(ledgers), "--sample-rate", "0.5"]
    texts = drawn(tmp_path / "curve.svg", *arguments)
    steps = {line.split(":")[0]: int(line.split(" for ")[1].split()[0]) for line in caps_told(capsys)}
    assert steps.keys() == {"north", "south"}
    assert f"capped after {steps['north'] // 2}" in texts
    assert f"south capped after {steps['south'] // 2}" in texts  # and west, which has no cap, ends where it does
    assert WHY_STOPPED in texts
    nothing_fits = drawn(tmp_path / "curve.svg", *arguments, "--noise-multiplier", "0.5")
    assert "north, south capped before the first" in nothing_fits
    # a run that fills its cap ends there, below the cap's epsilon, which has to be said as well
    full = RdpFilter.for_cap(3.0, 1e-5)
    noise = calibrate_noise_under(full, sample_rate=0.5, steps=24)
    alone = [*RATES[2:], "--after", str(ledgers / "south.sqlite"), "--steps", "24", "--noise-multiplier"]
    assert "capped after 24" in drawn(tmp_path / "curve.svg", *alone, f"{noise:.9f}")
    assert WHY_STOPPED not in drawn(tmp_path / "curve.svg", *alone, "30")


def caps_told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "has room for" in line]


def test_many_hospitals_are_drawn_as_their_range(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    rows = [f'[[hospitals]]\nid = "h{i}"\nnominal_units = 60\nepsilon = {1 + i / 2}\n' for i in range(9)]
    path.write_text("".join(rows))
    texts = drawn(tmp_path / "many.svg", str(path))
    assert [text for text in texts if ": " in text] == [
        "lowest (h0): 1.00",
        "median (h4): 3.00",
        "highest (h8): 5.00",
        "lowest allowed: 1",
        "highest allowed: 5",
    ]
    path.write_text("".join(rows[:8]))
    named = [text.split(":")[0] for text in drawn(tmp_path / "many.svg", str(path)) if text.startswith("h")]
    assert named == [*(f"h{i}" for i in range(8)), "highest allowed"]


def test_lines_are_told_apart_by_colour_and_by_dashes() -> None:
    looks = [(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i in range(MOST_CURVES)]
    assert len({colour for colour, _ in looks}) == MOST_CURVES
    for (colour, dashes), (next_colour, next_dashes) in pairwise(looks):
        assert dashes != next_dashes
        rgb, next_rgb = (np.array([int(each[k : k + 2], 16) for k in (1, 3, 5)]) for each in (colour, next_colour))
        assert np.linalg.norm(rgb - next_rgb) > 80


def test_an_epsilon_that_protects_nobody_is_remarked_upon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RATES, "--steps", "10", "--noise-multiplier", "0.2"]) == 0
    assert "protects nobody: odds may change by a factor of e^" in capsys.readouterr().err
    assert main([*RATES, "--steps", "10", "--noise-multiplier", "2"]) == 0
    assert "protects nobody" not in capsys.readouterr().err


def test_a_delta_beyond_double_precision_is_refused_as_that(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RATES, "--steps", "10", "--delta", "1e-30"]) == 2
    said = capsys.readouterr().err
    assert "delta=1e-30: double precision ends before it over 10 steps; take at least 1.2e-13" in said


def test_a_plan_with_its_noise_is_worked_out_after_what_ledgers_have_spent(
    plan_file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noises = [each["noise_multiplier"] for each in planned(capsys, "budget", "plan", str(plan_file))["hospitals"]]
    text = plan_file.read_text()
    for name, noise in zip(("north", "south", "west"), noises, strict=True):
        text = text.replace(f'id = "{name}"', f'id = "{name}"\nnoise_multiplier = {noise}')
    plan_file.write_text(text)
    with Ledger.create(tmp_path / "south.sqlite", "south") as ledger:
        ledger.open_run("run-1", bytes(32), [SampledGaussian(0.5, 3.0, 1)], rounds=1, retry_rounds=0)
        ledger.charge("run-1", 0, 0, context=bytes(32))
    assert main(["budget", "plan", str(plan_file), "--after", str(tmp_path / "south.sqlite"), "--json"]) == 0
    printed = capsys.readouterr()
    south = json.loads(printed.out)["hospitals"][1]
    assert south["epsilon"] > 4.0 == south["epsilon_allowed"]
    assert "south: with what its ledger has spent, epsilon 4." in printed.out  # of the things left out
