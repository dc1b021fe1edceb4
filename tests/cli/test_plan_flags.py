"""Flags and the plan say the same things."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import pytest
from privfm_cli.main import main
from privfm_cli.plan_flags import PLAN_FLAGS, SPEED_FLAGS, PlanFlag, check_unchanged, plan_from

from privfm.errors import InputError, PlanError
from privfm.plan import Plan, parse_plan, read_plan

OTHER: dict[str, Any] = {
    "--epsilon": 3.5,
    "--delta": 1e-6,
    "--unit": "image",
    "--sample-rate": 0.27,
    "--clip-norm": 0.53,
    "--clip-quantile": 0.4,
    "--dp/--no-dp": False,
    "--data": "phantom",
    "--image-size": 64,
    "--channels": 3,
    "--patients": 200,
    "--nominal-units": "70",
    "--hospitals": 4,
    "--rounds": 7,
    "--local-steps": 3,
    "--retry-rounds": 0,
    "--strategy": "fedadam",
    "--optimizer": "adam-bc",
    "--lr": 0.0371,
    "--server-lr": 0.53,
    "--seed": 11,
    "--backbone": "resnet18",
    "--patch-size": 8,
    "--init": "scratch",
    "--trainable": "last-2",
    "--objective": "other",
    "--probe/--no-probe": False,
    "--local-loss/--no-local-loss": True,
    "--device": "cpu",
    "--precision": "bfloat16",
    "--threads": 1,
}


def _value(plan: Plan, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), plan)


@pytest.mark.parametrize("flag", PLAN_FLAGS, ids=lambda flag: flag.name)
def test_a_flag_sets_its_key_and_its_help_tells_the_default(flag: PlanFlag) -> None:
    assert str(_value(Plan(), flag.key)) == flag.default
    other = OTHER[flag.flag]
    assert type(other) is flag.kind
    assert str(_value(plan_from(None, {flag.flag: other}), flag.key)) == str(other)
    assert other != _value(Plan(), flag.key)


def _typed(flag: PlanFlag) -> list[str]:
    if flag.kind is bool:
        on, off = flag.flag.split("/")
        return [on if OTHER[flag.flag] else off]
    return [flag.flag, str(OTHER[flag.flag])]


def test_every_flag_arrives_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [word for flag in PLAN_FLAGS for word in _typed(flag)]
    assert main(["train", "--print-plan", *arguments]) == 0
    printed = parse_plan(_toml(capsys.readouterr().out))
    assert {flag.flag: str(_value(printed, flag.key)) for flag in PLAN_FLAGS} == {k: str(v) for k, v in OTHER.items()}


def test_units_are_declared_for_each_hospital_by_name() -> None:
    three = "north=60,south=40, west=50"
    plan = plan_from(None, {"--nominal-units": three})
    assert {each.id: each.nominal_units for each in plan.hospitals} == {"north": 60, "south": 40, "west": 50}
    check_unchanged(plan, {"--nominal-units": three})
    with pytest.raises(PlanError, match="--nominal-units"):
        check_unchanged(plan, {"--nominal-units": "north=60,south=40,west=51"})


def test_declaring_units_keeps_what_the_file_says_of_a_hospital(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    names = ("north", "south", "west")
    path.write_text("".join(f'[[hospitals]]\nid = "{name}"\nnominal_units = 9\nepsilon = 2.0\n' for name in names))
    plan = plan_from(path, {"--nominal-units": "west=50"})
    assert [(each.nominal_units, each.epsilon) for each in plan.hospitals] == [(9, 2.0), (9, 2.0), (50, 2.0)]


@pytest.mark.parametrize("text", ["many", "", "north=60,north=40", "north=60,40x", "-3", "60,70"])
def test_units_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=f"^--nominal-units {text}: "):
        plan_from(None, {"--nominal-units": text})


def _toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[privacy]\nepsilon = 4\ndelta = 1e-6\n")
    plan = plan_from(path, {"--epsilon": 2.0})
    assert (plan.privacy.epsilon, plan.privacy.delta, plan.seed) == (2.0, 1e-6, 0)


def test_a_printed_plan_is_a_plan_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--epsilon", "4", "--print-plan"]) == 0
    path = tmp_path / "plan.toml"
    printed = capsys.readouterr().out
    assert "# [[hospitals]]\n# id =" in printed
    path.write_text(printed)
    assert parse_plan(read_plan(path)).hash() == plan_from(None, {"--epsilon": 4.0}).hash()


def test_a_printed_plan_names_hospitals_that_were_declared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--nominal-units", "north=60,south=40,west=55", "--print-plan"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("[[hospitals]]") == 3
    assert [each.nominal_units for each in parse_plan(_toml(printed)).hospitals] == [60, 40, 55]


def test_the_plan_in_the_readme_is_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    plan = parse_plan(_toml(example))
    assert [(each.id, each.nominal_units, plan.epsilon(each), plan.sample_rate(each)) for each in plan.hospitals] == [
        ("north", 600, 8.0, 0.1),
        ("south", 60, 4.0, 0.5),
        ("west", 80, 8.0, 0.5),
    ]


def test_a_wrong_key_is_blamed_on_the_file_and_a_wrong_flag_on_the_flag(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text("[privacy]\nepsilom = 4\n")
    with pytest.raises(PlanError, match=r"plan\.toml: privacy\.epsilom: unknown key; did you mean epsilon"):
        plan_from(path, {"--delta": 0.5})
    path.write_text("[privacy]\nepsilon = 4\n")
    with pytest.raises(PlanError, match=r"^--delta: privacy\.delta"):
        plan_from(path, {"--delta": 0.5})


@pytest.mark.parametrize("flag", PLAN_FLAGS, ids=lambda flag: flag.name)
def test_a_run_that_goes_on_keeps_its_plan(flag: PlanFlag) -> None:
    if flag.flag in SPEED_FLAGS:
        check_unchanged(Plan(), {flag.flag: OTHER[flag.flag]})
        return
    with pytest.raises(PlanError, match=f"^{flag.flag} "):
        check_unchanged(Plan(), {flag.flag: OTHER[flag.flag]})
    same = _value(Plan(), flag.key)
    if flag.kind is not str or same is not None:
        check_unchanged(Plan(), {flag.flag: same})


def test_what_is_already_there_is_never_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for place in (tmp_path, kept):
        assert main(["train", "--out", str(place)]) == 2
        assert f"--out {place}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "mine"


def test_resuming_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert "no run to go on with" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_resuming_with_another_plan_names_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.toml").write_text(Plan().to_toml())
    assert main(["train", "--out", str(tmp_path), "--resume", "--epsilon", "4"]) == 2
    assert capsys.readouterr().err.startswith("privfm: error: --epsilon 4.0: the run's plan says 8.0")
    assert issubclass(PlanError, InputError)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"--trainable": "last-x"}, "must be all, norm-bias, lora, or last-K with K from 1 to 99 (got 'last-x')"),
        ({"--nominal-units": "nor/th=3"}, "must be up to 64 letters, digits, dots, dashes or underscores"),
        ({"--device": "gpu"}, "must be auto, cpu, cuda, or cuda:N (got 'gpu')"),
    ],
)
def test_what_a_word_must_look_like_is_said_in_words(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=re.escape(said)) as caught:
        plan_from(None, flags)
    assert "^" not in str(caught.value)


def test_an_option_that_couples_images_is_refused_in_a_plan_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('[objective]\nname = "byol"\nmomentum = 0.99\n')
    with pytest.raises(PlanError, match=r"objective\.momentum: averages the weights of steps between releases"):
        plan_from(path, {})
