"""Plain words where nobody draws: no boxes and no colours in a pipe."""

from __future__ import annotations

import pytest
from privfm_cli.console import Column, show_table
from privfm_cli.progress import PlainProgress, duration, spent

from privfm.federation.records import RoundRecord


def test_a_table_in_a_pipe_is_aligned_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([Column("hospital", right=False), Column("epsilon")], [("north", "7.9"), ("st. mary", "12.25")])
    assert capsys.readouterr().out.splitlines() == [
        "hospital  epsilon",
        "north         7.9",
        "st. mary    12.25",
    ]


def _record(number: int) -> RoundRecord:
    return RoundRecord(
        round=number,
        attempt=0,
        cohort=("north", "south", "west"),
        survivors=("north", "south", "west"),
        update_norm=0.5,
        public_loss=0.9,
        local_loss=None,
        epsilon={"north": 1.0 * number, "south": 1.5 * number},
        transcript="00",
        model_hash="00",
        bytes_up=10,
    )


def test_progress_in_a_pipe_is_a_line_a_round_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainProgress(allowed=8.0)
    progress.stage("reading tiles")
    for number in (1, 2):
        progress.round_started(number, 2)
        progress.hospital_finished(number, "north", 1.0)
        progress.round_finished(_record(number))
    progress.warn("few patients")
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert printed.out == ""
    assert lines[0] == "reading tiles"
    assert lines[1].startswith("round 1/2  public loss 0.9000  epsilon so far north 1.00, south 1.50, 8 allowed  ")
    assert lines[2].endswith("0 s left")
    assert lines[3] == "privfm: warning: few patients"
    assert "\x1b" not in printed.err


def test_many_hospitals_are_summed_up() -> None:
    assert spent({f"h{i}": float(i) for i in range(9)}) == "0.00 to 8.00 at 9 hospitals"
    assert duration(3599.6) == "1 h 0 min"
