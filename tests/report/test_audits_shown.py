"""The page tells what audits found, and believes nothing of audit.json that an audit would not write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_run import make_run

from privfm.errors import RunError
from privfm.report import write_audit_page, write_report
from privfm.report.audits import read_audits

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def audit(**changed: Any) -> dict[str, Any]:
    return {
        "name": "canaries",
        "verdict": "LEAK",
        "sentence": "at least epsilon = 9 <b>",
        "attacker": "one who sees sums",
        "null_means": "It shows no more.",
        "findings": [{"check": "bound within the claim", "passed": False, "detail": "9 of 8"}],
        "figures": {"bound": 9.0},
        "advice": "Do not publish.",
        "made": "2026-01-02T03:04:05+00:00",
        "plots": [
            {
                "title": "Scores",
                "x_label": "score",
                "y_label": "canaries",
                "summary": "apart",
                "curves": {"in": [[0.5, 1], [0.7, 2]]},
                "band": [[0.5, 1.0, 1.5], [0.7, 1.8, 2.0]],
            }
        ],
        "pictures": [{"name": "best", "original": PIXEL, "rebuilt": PIXEL}],
        "local": False,
    } | changed


def page(tmp_path: Path, *audits: dict[str, Any]) -> str:
    run = make_run(tmp_path / "run")
    (run / "audit.json").write_text(json.dumps({"audits": audits, "left_out": ["half of the views"]}))
    return write_report(run).read_text()


def test_the_page_tells_verdicts_checks_plots_and_pictures(tmp_path: Path) -> None:
    html = page(tmp_path, audit())
    assert "What attacks found" in html
    assert "FAILED bound within the claim: 9 of 8" in html
    assert "at least epsilon = 9 &lt;b&gt;" in html
    assert 'text-anchor="middle">score</text>' in html
    assert 'text-anchor="middle">canaries</text>' in html
    assert len(html.partition('<polygon class="band s0" points="')[2].partition('"')[0].split()) == 4
    assert "2026-01-02" in html
    assert "<strong>What to do:</strong> Do not publish." in html
    assert "<strong>LEAK</strong>" in html
    assert "<details open>" in html
    assert "<strong>LEAK</strong>" not in page(tmp_path / "other", audit(verdict="NO LEAK DETECTED"))
    assert html.count(PIXEL) == 2
    assert "Left out for want of time: half of the views." in html


def test_many_pictures_come_in_rows_of_eight(tmp_path: Path) -> None:
    pictures = [{"name": f"number {place}", "original": PIXEL, "rebuilt": PIXEL} for place in range(11)]
    html = page(tmp_path, audit(pictures=pictures))
    assert html.count('<div class="pictures">') == page(tmp_path / "other", audit()).count('<div class="pictures">') + 1
    assert html.count(PIXEL) == 22


def test_what_stays_at_the_hospital_is_a_page_of_its_own(tmp_path: Path) -> None:
    source = tmp_path / "audit.json"
    source.write_text(json.dumps({"audits": [audit(local=True)]}))
    path = write_audit_page(source, "the run")
    html = path.read_text()
    assert path == tmp_path / "audit.html"
    assert path.stat().st_mode & 0o777 == 0o600
    assert "STAYS AT THE HOSPITAL" in html
    assert "FAILED bound within the claim: 9 of 8" in html
    assert "at least epsilon = 9 &lt;b&gt;" in html
    assert "<script" not in html


def test_without_audits_there_is_no_section(tmp_path: Path) -> None:
    assert "What attacks found" not in write_report(make_run(tmp_path / "run")).read_text()


@pytest.mark.parametrize(
    "damaged",
    [
        {"pictures": [{"name": "x", "original": "https://elsewhere/x.png", "rebuilt": PIXEL}]},
        {"pictures": [{"name": "x", "original": PIXEL + '" onerror="alert(1)', "rebuilt": PIXEL}]},
        {"plots": [{"title": "x", "x_label": "y", "summary": "z", "curves": {}}]},
        {"plots": [{"title": "x", "x_label": "y", "summary": "z", "curves": {"a": [["one", 2]]}}]},
        {"plots": [{"title": "x", "x_label": "y", "summary": "z", "curves": {"a": []}}]},
        {"plots": [{"title": "x", "x_label": "y", "summary": "z", "curves": {"a": [[-1e308, 1], [1e308, 2]]}}]},
        {"findings": "none"},
        {"verdict": None},
        {"verdict": "leak"},
        {"findings": [{"check": "", "passed": True, "detail": ""}] * 2_001},
        {"plots": audit()["plots"] * 17},
        {"plots": [audit()["plots"][0] | {"curves": {"in": [[place, 1] for place in range(2_001)]}}]},
        {"plots": [audit()["plots"][0] | {"band": [[place, 1, 2] for place in range(2_001)]}]},
    ],
    ids=[
        *("elsewhere", "attribute", "no curves", "no number", "no points", "too far", "no findings", "no verdict"),
        *("another verdict", "many findings", "many plots", "many points", "a long band"),
    ],
)
def test_what_no_audit_writes_is_refused_in_a_line(tmp_path: Path, damaged: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"audit\.json: not what an audit writes"):
        page(tmp_path, audit(**damaged))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"audits": [audit()] * 17}),
        json.dumps({"audits": [audit()], "notices": ["again"] * 101}),
        "[" * 300_000,
        json.dumps({"audits": [audit(sentence="\ud800")]}),
    ],
    ids=["many audits", "many notices", "deep", "half of a letter"],
)
def test_a_file_that_no_audit_writes_is_refused_in_a_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "audit.json").write_text(content)
    with pytest.raises(RunError, match="run privfm audit again"):
        read_audits(tmp_path / "audit.json")


def test_as_much_as_audits_write_is_shown(tmp_path: Path) -> None:
    curve = [[place, 1] for place in range(2_000)]
    plots = [audit()["plots"][0] | {"curves": {"in": curve}}] * 16
    html = page(tmp_path, *[audit(plots=plots if name == 0 else [], name=f"audit {name}") for name in range(16)])
    assert html.count("<dt>Audit ") == 16


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfm.report.audits.MOST_BYTES", 10)
    (tmp_path / "audit.json").write_text(json.dumps({"audits": [audit()]}))
    with pytest.raises(RunError, match="run privfm audit again"):
        read_audits(tmp_path / "audit.json")
