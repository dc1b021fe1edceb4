"""The transcript audit finds what is planted in a coordinator's log, and nothing in an ordinary one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from privfm_attacks.coordinator_log import Log, read_log
from privfm_attacks.planting import planted
from privfm_attacks.transcript import audit_transcript
from privfm_attacks.verdicts import AuditResult, Verdict

from privfm.errors import RunError, VerificationError
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory
from privfm.federation.imprints import imprints
from privfm.federation.network import load_network, trained
from privfm.federation.notebook import Notebook
from privfm.federation.planning import complete_plan
from privfm.federation.records import RoundRecord
from privfm.federation.simulation import open_hospitals, system_coins, units_from
from privfm.federation.training import train
from privfm.ids import HospitalId
from privfm.plan import parse_plan

NAMES = tuple("abcdefg")
PLAN = complete_plan(
    parse_plan({"federation": {"rounds": 6}, "secagg": {"max_corrupt": 1}}),
    {HospitalId(name): 50 for name in NAMES},
    0.3,
)
"""Seven hospitals, of which five must finish."""


WITHOUT_NOISE = PLAN.model_copy(update={"privacy": PLAN.privacy.model_copy(update={"dp": False})})


def record(number: int, survivors: str = "abcdefg", cohort: str = "abcdefg", **changes: Any) -> RoundRecord:
    ordinary = RoundRecord(
        round=number,
        attempt=0,
        cohort=tuple(cohort),
        survivors=tuple(survivors),
        update_norm=1.0,
        public_loss=1.0,
        local_loss=None,
        epsilon={},
        transcript=f"{number:064x}",
        model_hash=f"{number + 1000:064x}",
        bytes_up=10,
        mask_keys={name: f"{number * 100 + ord(name):064x}" for name in cohort},
    )
    return replace(ordinary, **changes)


def log_of(*records: RoundRecord, **changes: Any) -> Log:
    generator = torch.Generator().manual_seed(0)
    state = {
        "backbone.embed.weight": torch.randn(32, 1, 4, 4, generator=generator),
        "backbone.embed.bias": torch.zeros(32),
    }
    return replace(Log(PLAN, records, frozenset(NAMES), {"start": state}), **changes)


ORDINARY = [record(number) for number in range(1, 7)]


def failed(result: AuditResult) -> set[str]:
    return {finding.check for finding in result.findings if not finding.passed}


def test_an_ordinary_log_shows_sums_over_everybody() -> None:
    result = audit_transcript(log_of(*ORDINARY))
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert failed(result) == set()
    assert "leaves fewer than 7 hospitals; threshold 5" in result.sentence
    assert result.figures["controls"] == 7
    assert (result.figures["rank"], result.figures["smallest_isolated"]) == (1, 7)


def test_drop_outs_are_no_leak_but_are_told() -> None:
    result = audit_transcript(log_of(record(1), record(2, "abcdef"), record(3, "bcdefg"), record(4, "abcde")))
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert failed(result) == set()
    assert "isolate is 1, of a threshold of 5: +1 x sum 1 -1 x sum 2 leaves g" in result.sentence
    assert "times its noise when seen alone" in result.sentence
    assert result.figures["smallest_isolated"] == 1


def test_a_swap_leaves_the_difference_of_two() -> None:
    result = audit_transcript(log_of(record(1, "abcdef"), record(2, "bcdefg")))
    assert result.figures["smallest_isolated"] == 2
    assert "leaves a, g" in result.sentence


def imprint(share: float) -> dict[str, torch.Tensor]:
    """Some rows that measure brightness against rising thresholds, among ordinary ones."""
    weight = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    rows = int(32 * share)
    weight[:rows] = torch.linspace(1, 2, rows)[:, None, None, None] * torch.ones(1, 4, 4) / 16
    return {"backbone.embed.weight": weight, "backbone.embed.bias": -torch.linspace(0, 1, 32)}


PLANTED: dict[str, tuple[str, Callable[[], Log]]] = {
    "a sum of four": ("sums", lambda: log_of(*ORDINARY, record(7, "abcd"))),
    "nobody of the cohort": ("sums", lambda: log_of(*ORDINARY, record(7, "abcdefg", "abcdef"))),
    "a round twice": ("once", lambda: log_of(*ORDINARY, record(6, "abcdef", transcript="aa" * 32, mask_keys={}))),
    "one model twice": ("once", lambda: log_of(*ORDINARY, record(7, model_hash=ORDINARY[2].model_hash))),
    "one transcript twice": ("masks", lambda: log_of(*ORDINARY, record(7, transcript=ORDINARY[0].transcript))),
    "one key in two rounds": (
        "masks",
        lambda: log_of(*ORDINARY, record(7, mask_keys={"a": ORDINARY[3].mask_keys["a"]})),
    ),
    "one key of two hospitals": ("masks", lambda: log_of(*ORDINARY, record(7, mask_keys={"a": "77", "b": "77"}))),
    "strangers": ("cohorts", lambda: log_of(*ORDINARY, record(7, "avwxy", "avwxy"))),
    "a name that the roster lacks": ("cohorts", lambda: log_of(*ORDINARY, members=frozenset("abcdef"))),
    "newcomers": ("cohorts", lambda: log_of(record(1, "ab"), record(2, "bcdefg"))),
    "companions": ("cohorts", lambda: log_of(record(1), record(2, "a"))),
    "an imprint": ("models", lambda: log_of(*ORDINARY, models={"start": imprint(1.0)})),
    "half an imprint": ("models", lambda: log_of(*ORDINARY, models={"start": imprint(0.5)})),
    "an imprint of huge weights": (
        "models",
        lambda: log_of(*ORDINARY, models={"start": {key: 1e30 * value for key, value in imprint(0.5).items()}}),
    ),
    "two rows alike": ("models", lambda: log_of(*ORDINARY, models={"start": imprint(2 / 32)})),
    "an imprint that hospitals noted": (
        "models",
        lambda: log_of(*ORDINARY, noted=("the model of round 3, as a, b received it: embed: 5 of 5 rows",)),
    ),
    "another start": ("models", lambda: log_of(*ORDINARY, first=False)),
    "another end": ("models", lambda: log_of(*ORDINARY, last=False)),
    "known noise": ("combinations", lambda: log_of(*ORDINARY, record(7, "abcdef"), private=False)),
    "no noise": ("combinations", lambda: log_of(*ORDINARY, record(7, "abcdef"), plan=WITHOUT_NOISE)),
}


@pytest.mark.parametrize("case", PLANTED)
def test_every_planted_case_is_found(case: str) -> None:
    check, made = PLANTED[case]
    result = audit_transcript(made())
    assert result.verdict is Verdict.LEAK
    assert check in failed(result)
    assert "control" not in failed(result)
    if case not in ("newcomers", "companions", "strangers", "a sum of four"):  # those are small sums too
        assert failed(result) == {check}


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (log_of(record(1, "abcde"), record(2, "efg")), "round 2: 2 of 3 hospitals are new"),
        (log_of(record(1, "abcdefg"), record(2, "abc"), record(3, "adefg")), "round 3: d+e+f+g always came together"),
        (log_of(record(1, "abc"), record(2, "bcdef"), record(3, "abdef")), ""),
    ],
)
def test_sybils_are_named(log: Log, said: str) -> None:
    (cohorts,) = [each.detail for each in audit_transcript(log).findings if each.check == "cohorts"]
    assert said in cohorts
    assert (said == "") == (cohorts == "nobody is in a sum among strangers or newcomers alone")


def test_known_noise_without_drop_outs_is_no_leak() -> None:
    assert audit_transcript(log_of(*ORDINARY, private=False)).verdict is Verdict.NO_LEAK_DETECTED


def test_a_check_that_sees_nothing_makes_the_audit_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfm_attacks.transcript._mask_reuse", lambda log: iter(()))
    result = audit_transcript(log_of(*ORDINARY))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert failed(result) == {"control"}


def test_controls_plant_in_copies() -> None:
    log = log_of(*ORDINARY)
    cases = list(planted(log))
    assert len({case for case, _, _ in cases}) == len(cases) == 7
    assert log == log_of(*ORDINARY, models=log.models)


def test_nothing_summed_yet() -> None:
    result = audit_transcript(log_of())
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert "no sum was released" in result.sentence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("transcript") / "run"
    sections = {
        "data": {"source": "phantom", "patients": 30, "image_size": 16, "hospitals": 3, "min_patients": 4},
        "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
        "privacy": {"images_per_unit": 2, "views": 1},
        "federation": {"rounds": 2, "local_steps": 1, "retry_rounds": 1},
        "evaluation": {"probe": False},
        "performance": {"device": "cpu", "threads": 1},
    }
    train(parse_plan(sections), out)
    return RunDirectory(out)


def test_a_real_run_passes_and_keeps_its_keys(run: RunDirectory) -> None:
    log = read_log(run)
    result = audit_transcript(log)
    assert [finding for finding in result.findings if not finding.passed] == []
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert (log.first, log.last, log.private) == (True, True, True)
    assert [sorted(record.mask_keys) for record in log.records] == [sorted(log.members)] * 2
    assert len({key for record in log.records for key in record.mask_keys.values()}) == 6


def test_a_start_that_was_exchanged_is_found(run: RunDirectory, tmp_path: Path) -> None:
    start, network = run.root / "start.safetensors", run.root / "network.safetensors"
    kept = start.read_bytes()
    start.write_bytes(network.read_bytes())
    try:
        assert read_log(run).first is False
    finally:
        start.write_bytes(kept)


def test_what_hospitals_noted_of_a_model_is_told(run: RunDirectory) -> None:
    notes = [run.own(hospital.id) / "local.jsonl" for hospital in run.plan.hospitals[:2]]
    kept = [path.read_text() for path in notes]
    for path in notes:
        Notebook(path.parent).note_imprints(2, 0, ["embed: 5 of 5 rows are multiples of others"])
    try:
        result = audit_transcript(read_log(run))
    finally:
        for path, text in zip(notes, kept, strict=True):
            path.write_text(text)
    names = ", ".join(hospital.id for hospital in run.plan.hospitals[:2])
    assert result.verdict is Verdict.LEAK
    assert f"the model of round 2, as {names} received it: embed: 5 of 5 rows" in result.sentence


@pytest.fixture
def copied(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    shutil.copytree(run.root, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def rewrite(directory: RunDirectory, *records: RoundRecord) -> RunDirectory:
    lines = "".join(json.dumps(each.to_json()) + "\n" for each in records)
    (directory.root / "rounds.jsonl").write_text(lines)
    return directory


def again(last: RoundRecord, **changed: Any) -> RoundRecord:
    """Another sum, of a later attempt."""
    fresh = replace(last, attempt=last.attempt + 1, transcript="ab" * 32, mask_keys={})
    return replace(fresh, **changed)


FOLDERS: dict[str, tuple[str, Callable[[RoundRecord, RoundRecord], list[RoundRecord]]]] = {
    "summed again": ("round 2 was summed 2 times", lambda one, two: [one, two, again(two)]),
    "summed again before": ("round 1 was summed 2 times", lambda one, two: [one, again(one), two]),
    "over others": ("round 2 was summed 2 times", lambda one, two: [one, two, again(two, survivors=two.survivors[1:])]),
    "repeated": ("round 2 was summed 2 times", lambda one, two: [one, two, two]),
    "further": ("round 3 was summed, and of 2", lambda one, two: [one, two, again(two, round=3, model_hash="cd" * 32)]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_records_that_lie_beside_those_that_count_are_found(copied: RunDirectory, case: str) -> None:
    """Who goes on with a run passes over them, or refuses the folder; an audit must not."""
    said, made = FOLDERS[case]
    one, two = copied.records()
    result = audit_transcript(read_log(rewrite(copied, *made(one, two))))
    assert result.verdict is Verdict.LEAK
    (once,) = [finding for finding in result.findings if finding.check == "once"]
    assert not once.passed
    assert said in once.detail


def test_a_crash_between_record_and_checkpoint_is_no_leak(copied: RunDirectory) -> None:
    (copied.root / "network.safetensors").unlink()
    copied.save_checkpoint(replace(copied.load_checkpoint(), rounds=1))
    result = audit_transcript(read_log(copied))
    assert failed(result) == set()
    assert result.figures["sums"] == 2
    copied.finish_round(again(copied.records()[1]), replace(copied.load_checkpoint(), rounds=2))
    assert failed(audit_transcript(read_log(copied))) == set()


def test_a_record_further_than_a_crash_can_leave_is_found(copied: RunDirectory) -> None:
    copied.save_checkpoint(replace(copied.load_checkpoint(), rounds=0))
    assert "once" in failed(audit_transcript(read_log(copied)))


def test_finished_rounds_without_a_record_are_told(copied: RunDirectory) -> None:
    with pytest.raises(VerificationError, match="does not hold the 2 finished rounds"):
        read_log(rewrite(copied, copied.records()[1]))


@pytest.mark.parametrize(
    "changed",
    [
        '"survivors": [1, 2, 3]',
        '"survivors": ["\\ud800"]',
        '"survivors": ["\\u001b[2J"]',
        f'"round": 1{"0" * 400}',
        '"round": 1e999',
        '"round": true',
        '"attempt": -1',
        '"update_norm": "large"',
        f'"update_norm": 1{"0" * 400}',
        '"transcript": null',
        '"mask_keys": {"a": 1}',
        '"mask_keys": []',
        '"epsilon": 1',
        f'"epsilon": {"[" * 100_000}',
    ],
    ids=lambda text: text[:24],
)
def test_records_that_no_run_writes_are_refused_in_a_line(copied: RunDirectory, changed: str) -> None:
    path = copied.root / "rounds.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-1] + f", {changed}}}"]))  # of two values for a key the last counts
    with pytest.raises(RunError, match=r"rounds\.jsonl: .* damaged"):
        read_log(copied)


def test_of_local_notes_only_what_a_hospital_writes_of_a_model_is_told(copied: RunDirectory) -> None:
    hospital = copied.plan.hospitals[0].id
    line = "backbone.embed: 5 of 5 rows are multiples of others"
    notes = [
        *({"round": number, "imprints": [line]} for number in (0, 3, True, 2.0, "2", -1, None)),
        {
            "round": 1,
            "imprints": ["Doe, Jane: 5 of 5 rows are multiples of others", "\ud800", 5, f"{line} of Jane Doe"],
        },
        {"round": 2, "imprints": [line, f"{line}, with 3 different biases; it sees 1 of 16 directions"]},
        {"round": 2, "attempt": 1, "imprints": [line]},
    ]
    with (copied.own(hospital) / "local.jsonl").open("a") as file:
        file.write("".join(json.dumps(note) + "\n" for note in notes) + "[" * 100_000 + "\n")
    told = f"the model of round 2, as {hospital} received it: {line}"
    assert read_log(copied).noted == (told, f"{told}, with 3 different biases; it sees 1 of 16 directions")


def test_a_start_whose_rows_are_parallel_is_told_although_no_hospital_notes_it() -> None:
    log = log_of(*ORDINARY, models={"start.safetensors": imprint(0.5)})
    assert "start.safetensors: backbone.embed: 16 of 32 rows" in audit_transcript(log).sentence


def rising(rows: int, numbers: int) -> torch.Tensor:
    """Rows that measure one thing against rising thresholds."""
    return torch.linspace(1, 2, rows)[:, None].expand(rows, numbers)


def test_hospitals_note_layers_that_were_not_so_from_the_start(copied: RunDirectory) -> None:
    """Of a start whose rows are parallel by nature counts change every round; another layer's rows are still noted."""
    plan, start = copied.plan, load_network(copied.root, "start.safetensors")
    start.network.requires_grad_(True)
    named = [(name, value) for name, value in start.network.named_parameters() if name.endswith(".weight")]
    first, *others = [value for name, value in named if name.startswith("backbone.") and value.dim() >= 2]
    other = next(value for value in others if value[0].numel() >= 64)
    with torch.no_grad():
        first[:4] = rising(4, first[0].numel()).reshape(first[:4].shape)
    units = units_from(gather_cohort(plan), plan, start)
    run = bytes.fromhex(copied.facts().run)
    with open_hospitals(copied, plan, run, units, start, system_coins) as hospitals, torch.no_grad():
        hospital = next(iter(hospitals.values()))
        first[:6] = rising(6, first[0].numel()).reshape(first[:6].shape)
        hospital._examine(trained(start.network), 1, 0)
        assert list(hospital.notebook.imprints()) == []
        other[:] = rising(len(other), other.shape[1])
        hospital._examine(trained(start.network), 2, 0)
        ((number, (line,)),) = hospital.notebook.imprints()
    assert number == 2
    assert f"{len(other)} of {len(other)} rows" in line


def test_first_steps_of_adapters_are_not_suspicious() -> None:
    """Adam's first step from zero is a vector of signs, and in a mean of three hospitals' some rows are alike."""
    generator = torch.Generator().manual_seed(0)
    signs = sum((torch.randn(3072, 16, generator=generator).sign() for _ in range(3)), torch.zeros(1))
    signs[1] = signs[0]
    state = {"backbone.embed.weight": torch.eye(16), "backbone.blocks.0.fc1.up.weight": signs * 1e-3}
    assert imprints(state) == ()
    assert imprints({"backbone.embed.weight": torch.eye(16), "backbone.fc.weight": rising(32, 64)}) == (
        "backbone.fc: 32 of 32 rows are multiples of others",
    )


@pytest.mark.parametrize(("alike", "told"), [(0, False), (7, False), (8, True), (400, True)])
def test_of_a_wide_first_layer_a_pair_is_chance(alike: int, told: bool) -> None:
    rows = torch.randn(768, 16, generator=torch.Generator().manual_seed(0))
    rows[:alike] = rising(alike, 16)
    said = imprints({"backbone.embed.weight": rows})
    assert said == ((f"backbone.embed: {alike} of 768 rows are multiples of others",) if told else ())


def test_records_from_before_keys_were_kept(run: RunDirectory) -> None:
    path = run.root / "rounds.jsonl"
    kept = path.read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    for line in lines:
        del line["mask_keys"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        result = audit_transcript(read_log(run))
    finally:
        path.write_text(kept)
    assert result.verdict is Verdict.NO_LEAK_DETECTED
    assert any("0 keys" in finding.detail for finding in result.findings)
