"""The report: whole, closed to the network, true to its run, and blind to what hospitals keep."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_run import POISON, make_run

from privfm.dp.statement import PrivacyStatement
from privfm.errors import InputError, RunError
from privfm.report import write_report

VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Checks that tags close in order, and gathers attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "tiles-run")


def test_the_page_is_well_formed_and_named_after_its_run(run: Path) -> None:
    path = write_report(run)
    html = path.read_text()
    Outline(html)
    assert path == run / "report.html"
    assert "<title>Training report: tiles</title>" in html
    for number in ("7.04", "0.585", "2.4 MB", "hospital-5"):
        assert number in html


def test_the_statement_is_all_there(run: Path) -> None:
    statement = PrivacyStatement.from_json((run / "privacy.json").read_text())
    words = unescape(write_report(run).read_text())
    for part in statement.sections():
        assert part.title in words
        assert all(text in words for text in (*part.sentences, *part.items))
        assert all(f">{cell}<" in words for row in part.table for cell in row)


def test_nothing_is_loaded_from_anywhere(run: Path) -> None:
    html = write_report(run).read_text()
    outline = Outline(html)
    addresses = [value or "" for _, name, value in outline.attributes if name in ("src", "href", "srcset", "action")]
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert not re.search(r"<script|<link|<iframe|@import|url\(|https?:", html)
    assert not [
        attribute for attribute in outline.attributes if attribute[1] == "style" or attribute[1].startswith("on")
    ]


def test_the_content_policy_allows_this_style_sheet_and_no_other(run: Path) -> None:
    html = write_report(run).read_text()
    sheet = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert sheet is not None
    digest = base64.b64encode(hashlib.sha256(sheet[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'" in html


def test_every_picture_and_chart_has_words(run: Path) -> None:
    html = write_report(run).read_text()
    assert html.count('role="img"') == html.count("</desc>") == 5
    assert len(re.findall(r"<img ", html)) == len(re.findall(r'<img [^>]*alt="[^"]+"', html))


def test_a_run_with_injected_coins_is_called_not_private(tmp_path: Path) -> None:
    assert "NOT PRIVATE" in write_report(make_run(tmp_path / "bad", private=False)).read_text()
    assert "NOT PRIVATE" not in write_report(make_run(tmp_path / "good")).read_text()


def test_a_run_that_is_not_over_says_how_to_go_on(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "part", rounds=3, over=False)).read_text()
    assert "3 of 10 rounds" in html
    assert "privfm train --out part --resume" in html


def test_a_run_without_a_finished_round_has_a_page_too(tmp_path: Path) -> None:
    Outline(write_report(make_run(tmp_path / "early", rounds=0, over=False)).read_text())


def test_what_a_person_named_is_escaped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    header = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(header | {"started": "<script>alert(1)</script>"}))
    assert "<script" not in write_report(run).read_text()


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that is opened while the test runs."""
    paths: list[str] = []
    active = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if active[0] and event in ("open", "os.listdir", "os.scandir"):
            paths.append(str(arguments[0]))

    sys.addaudithook(watch)
    yield paths
    active[0] = False


def test_nothing_that_a_hospital_keeps_is_read_or_shown(run: Path, opened: list[str]) -> None:
    html = write_report(run).read_text()
    assert str(run / "rounds.jsonl") in opened
    assert not [path for path in opened if "/hospitals" in path]
    assert POISON not in html


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("run.json", "{", "run.json: cannot be read"),
        ("run.json", "[]", "run.json: must be an object"),
        ("rounds.jsonl", '{"round": 1}\n', "rounds.jsonl: line 1 is damaged"),
        ("rounds.jsonl", "\udcff", "rounds.jsonl: line 1 is damaged"),
        ("result.json", "", "result.json: cannot be read"),
        ("privacy.json", "{}", "privacy.json: cannot be read"),
        ("plan.toml", "epsilom = 3", "plan.toml: epsilom: unknown key"),
    ],
)
def test_a_damaged_file_is_named(run: Path, name: str, content: str, complaint: str) -> None:
    (run / name).write_text(content, errors="surrogateescape")
    with pytest.raises(RunError, match=re.escape(complaint)):
        write_report(run)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
