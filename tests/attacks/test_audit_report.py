"""What audits found adds up: nothing takes a leak off the report but an audit that could have seen it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from privfm_attacks.audits import AUDITS
from privfm_attacks.report import FILE, LOCAL, Report, keep_report
from privfm_attacks.verdicts import AuditResult, Finding, Plot, Verdict, not_done

ORDER = list(AUDITS)
NAN = float("nan")


def found(name: str = "membership", verdict: Verdict = Verdict.LEAK, **changed: Any) -> AuditResult:
    findings = (Finding("beyond chance", verdict is not Verdict.LEAK, "9 of 8"),)
    return replace(AuditResult(name, verdict, "told apart", "one with the model", "No more.", findings), **changed)


def kept(root: Path, *results: AuditResult, left_out: tuple[str, ...] = ()) -> Report:
    (root / LOCAL).parent.mkdir(exist_ok=True)
    return keep_report(Report(results, (), left_out), root, ORDER)


def verdicts(path: Path) -> dict[str, str]:
    return {each["name"]: each["verdict"] for each in json.loads(path.read_text())["audits"]}


CONCLUSIVE, UNSURE = found(verdict=Verdict.NO_LEAK_DETECTED), found(verdict=Verdict.INCONCLUSIVE)
QUICK = replace(CONCLUSIVE, quick=True)


@pytest.mark.parametrize("local", [False, True])
def test_what_was_not_carried_out_takes_no_leak_away(tmp_path: Path, local: bool) -> None:
    kept(tmp_path, found(local=True))
    report = kept(tmp_path, not_done("membership", "a hospital asks for it by name", local=local))
    assert report.failed == ("membership",)
    assert verdicts(tmp_path / FILE) == verdicts(tmp_path / LOCAL) == {"membership": "LEAK"}
    (notice,) = json.loads((tmp_path / FILE).read_text())["notices"]
    assert notice.startswith("membership: LEAK, as found 20")
    assert "stands; now not done" in notice
    assert ("by name" in notice) != local
    assert kept(tmp_path, found("canaries", Verdict.NO_LEAK_DETECTED)).notices == (notice,)
    assert kept(tmp_path, CONCLUSIVE).notices == ()


@pytest.mark.parametrize(
    ("earlier", "newer", "stays"),
    [
        (found(), QUICK, True),
        (found(), UNSURE, True),
        (found(), CONCLUSIVE, False),
        (found(), found(quick=True), True),
        (found(quick=True), QUICK, False),
        (found(quick=True), CONCLUSIVE, False),
        (CONCLUSIVE, not_done("membership", "no images"), True),
        (CONCLUSIVE, UNSURE, False),
        (not_done("membership", "no images"), not_done("membership", "no model"), False),
        (found("mechanism", Verdict.NO_LEAK_DETECTED), not_done("mechanism", "no room"), False),
        (found("mechanism"), not_done("mechanism", "no room"), True),
    ],
)
def test_which_result_stays(tmp_path: Path, earlier: AuditResult, newer: AuditResult, stays: bool) -> None:
    """The last two: what must hold and could not be tried forbids publishing, whatever was found before."""
    kept(tmp_path, earlier)
    report = kept(tmp_path, newer)
    (result,) = report.audits
    assert replace(result, made="") == (earlier if stays else newer)
    assert len(report.notices) == stays


def test_what_a_result_was_found_without_is_told_of_that_one(tmp_path: Path) -> None:
    kept(tmp_path, found())
    assert kept(tmp_path, QUICK, left_out=("membership: half of the views",)).left_out == ()


def edited(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(change(json.loads(content))).encode()


def first(**changed: Any) -> Callable[[bytes], bytes]:
    return edited(lambda whole: {**whole, "audits": [{**whole["audits"][0], **changed}, *whole["audits"][1:]]})


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "another verdict": first(verdict="PASSED"),
    "no number": first(figures={"bound": float("inf")}),
    "another audit": first(name="everything"),
    "half of a letter": first(sentence="\ud800"),
    "notices missing": edited(lambda whole: {key: each for key, each in whole.items() if key != "notices"}),
    "deep": lambda content: b"[" * 100_000,
    "no audits": lambda content: b"[]",
    "audits twice": edited(lambda whole: {**whole, "audits": whole["audits"] * 2}),
    "large": lambda content: content + b" " * (17 << 20),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_set_aside_and_not_passed_over(tmp_path: Path, damage: str) -> None:
    path, sound = tmp_path / FILE, found("canaries", Verdict.NO_LEAK_DETECTED)
    kept(tmp_path, sound, found("transcript"))
    content = DAMAGED[damage](path.read_bytes())
    path.write_bytes(content)
    report = kept(tmp_path, sound)
    assert report.failed == ("earlier audits",)
    assert "audit.json is now audit.json.damaged" in report.notices[0]
    assert (tmp_path / "audit.json.damaged").read_bytes() == content
    assert verdicts(path) == {"canaries": "NO LEAK DETECTED"}
    again = kept(tmp_path, sound)
    assert (again.failed, again.notices) == ((), report.notices)


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    for content in ("one", "two"):
        (tmp_path / FILE).write_text(content)
        assert kept(tmp_path, CONCLUSIVE).failed == ("earlier audits",)
    assert [(tmp_path / f"audit.json.damaged{end}").read_text() for end in ("", "1")] == ["one", "two"]


def test_a_damaged_file_at_the_hospital_is_not_passed_over(tmp_path: Path) -> None:
    kept(tmp_path, found(local=True))
    (tmp_path / LOCAL).write_text("{}")
    assert kept(tmp_path, replace(CONCLUSIVE, local=True)).failed == ("earlier audits",)


PLOT = Plot("Scores", "score", "canaries", "apart", {"in": [(0.0, NAN)]})


@pytest.mark.parametrize("damage", [{"figures": {"auc": NAN, "members": 3.0}}, {"plots": (PLOT,)}])
def test_figures_that_are_no_numbers_conclude_nothing(tmp_path: Path, damage: dict[str, Any]) -> None:
    report = kept(tmp_path, replace(CONCLUSIVE, local=True, **damage), found("canaries", **damage))
    canaries, membership = report.audits
    assert (membership.verdict, membership.done, membership.local) == (Verdict.INCONCLUSIVE, False, True)
    assert "is not finite; a model's file is damaged" in membership.sentence
    assert (canaries.verdict, canaries.plots, "auc" in canaries.figures) == (Verdict.LEAK, (), False)


def test_names_of_files_that_are_no_text_are_kept_as_text(tmp_path: Path) -> None:
    kept(tmp_path, found(sentence="no image: \udcff.png"), not_done("canaries", "\udcff"))
    assert kept(tmp_path, found("transcript")).failed == ("membership", "transcript")
