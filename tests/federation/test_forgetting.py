"""Asking out: nothing is refunded, images are not read any more, and training again is exact."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from privfm.data import folder
from privfm.data.decoding import read_image
from privfm.data.pixels import Frame
from privfm.dp.coins import InjectedCoins
from privfm.dp.ledger import Ledger
from privfm.errors import DataError, InputError, RunError
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory
from privfm.federation.forgetting import forget, train_again
from privfm.federation.forgotten import NOBODY, Forgotten, read_forgotten, read_origin
from privfm.federation.stating import state_run
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.ids import HospitalId, PatientId
from privfm.plan import Plan, parse_plan

TinyPlan = Callable[..., Plan]
PATIENTS = {"a": ["zoe-1963", "a2", "a3"], "b": ["b1", "b2", "b3"], "c": ["c1", "c2"], "d": ["d1", "d2"]}
TINY = {
    "model": {"patch_size": 4, "width": 16, "depth": 1, "heads": 2, "init": "scratch"},
    "privacy": {"images_per_unit": 2, "views": 1, "sample_rate": 0.9},
    "federation": {"rounds": 2, "local_steps": 2, "retry_rounds": 2},
    "performance": {"device": "cpu", "threads": 1},
    "hospitals": [{"id": name, "nominal_units": 3 if name < "d" else 12} for name in PATIENTS],
}


def injected(hospital: str) -> InjectedCoins:
    return InjectedCoins(f"test {hospital}".encode())


def write_images(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for hospital, names in PATIENTS.items():
        for name in names:
            (root / hospital / name).mkdir(parents=True)
            for image in range(2):
                pixels = rng.integers(0, 255, (20, 20), dtype=np.uint8)
                Image.fromarray(pixels).save(root / hospital / name / f"{image}.png")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan, Path]:
    """Images, the plan that was asked for, and a finished run whose coins are known, for comparing bit for bit."""
    root = tmp_path_factory.mktemp("finished")
    torch.set_num_threads(1)
    plan = parse_plan({**TINY, "data": {"source": str(write_images(root / "images")), "image_size": 16}})
    return root / "images", plan, train(plan, root / "run", coins_of=injected).out


@pytest.fixture
def images(finished: tuple[Path, Plan, Path], tmp_path: Path) -> Iterator[Path]:
    """The images, put back afterwards."""
    shutil.copytree(finished[0], tmp_path / "kept")
    yield finished[0]
    shutil.rmtree(finished[0])
    shutil.copytree(tmp_path / "kept", finished[0])


@pytest.fixture
def plan(finished: tuple[Path, Plan, Path]) -> Plan:
    return finished[1]


@pytest.fixture
def run(finished: tuple[Path, Plan, Path], tmp_path: Path) -> RunDirectory:
    shutil.copytree(finished[2], tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def entries(run: RunDirectory, hospital: str) -> str:
    with sqlite3.connect(run.ledger(hospital)) as connection:
        return "\n".join(body for (body,) in connection.execute("SELECT body FROM entries ORDER BY sequence"))


def test_training_again_equals_never_having_been_there_bit_for_bit(
    run: RunDirectory, plan: Plan, images: Path, tmp_path: Path
) -> None:
    forget(run, "a", "zoe-1963")
    again = train_again(run, tmp_path / "again", coins_of=injected)
    shutil.rmtree(images / "a" / "zoe-1963")
    never = train(plan, tmp_path / "never", coins_of=injected)
    assert again.model.read_bytes() == never.model.read_bytes()
    assert again.model.read_bytes() != (run.root / "model.safetensors").read_bytes()
    assert RunDirectory(again.out).plan.hash() == run.plan.hash()


def test_training_again_without_a_hospital_equals_a_federation_without_it(
    run: RunDirectory, plan: Plan, images: Path, tmp_path: Path
) -> None:
    forget(run, "d")
    again = train_again(run, tmp_path / "again", coins_of=injected)
    shutil.rmtree(images / "d")
    never = train(plan.model_copy(update={"hospitals": plan.hospitals[:3]}), tmp_path / "never", coins_of=injected)
    assert again.model.read_bytes() == never.model.read_bytes()
    assert RunDirectory(again.out).plan.hash() == RunDirectory(never.out).plan.hash()
    assert [each.id for each in again.hospitals] == ["a", "b", "c"]
    origin = read_origin(RunDirectory(again.out))
    assert origin is not None
    assert (origin.of, origin.hospitals) == (run.facts().run, ("d",))


def test_nothing_is_refunded_and_training_again_is_charged_on_the_same_ledgers(
    run: RunDirectory, tmp_path: Path
) -> None:
    with Ledger.open(run.ledger("a"), "a", read_only=True) as ledger:
        before = ledger.events()
    told = forget(run, "a", "zoe-1963")
    with Ledger.open(run.ledger("a"), "a", read_only=True) as ledger:
        assert ledger.events() == before
        assert ledger.asked_out
    assert (told.first_round, told.private, told.known) == (1, False, False)
    again = RunDirectory(train_again(run, tmp_path / "again", coins_of=injected).out)
    assert again.ledger("a") == run.ledger("a").resolve()
    with Ledger.open(run.ledger("a"), "a", read_only=True) as ledger:
        assert [record.charged for record in ledger.runs()] == [2, 2]
        assert ledger.spent(run.facts().run) == ledger.spent(again.facts().run) == 4
    for directory in (run, again):  # the statement of before still is what ledgers said then
        verify_run(directory)
        words = state_run(directory).to_text()
        assert "Somebody asked out at a. What was released before stays released and charged" in words


def test_no_identifier_leaves_the_hospitals_own_file(run: RunDirectory, tmp_path: Path) -> None:
    told = forget(run, "a", "zoe-1963")
    again = train_again(run, tmp_path / "again", coins_of=injected)
    assert '"what":"patient"' in entries(run, "a").replace(" ", "")
    for root in (run.root, again.out):
        own = root / "hospitals" / "a" / "forgotten.json"
        assert json.loads(own.read_text()) == {"version": 1, "hospital": False, "patients": ["zoe-1963"]}
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        others = [path for path in root.rglob("*") if path.is_file() and path != own]
        assert not [path for path in others if b"zoe-1963" in path.read_bytes()]
    assert "zoe-1963" not in entries(run, "a")
    assert "zoe-1963" not in " ".join(told.sentences())
    assert [file.parent.name for file in told.files] == ["zoe-1963", "zoe-1963"]


def test_images_of_whoever_asked_out_are_not_decoded_again(
    run: RunDirectory, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(run, "a", "zoe-1963")
    decoded: list[Path] = []

    def reading(frame: Frame, side: int) -> NDArray[np.float32]:
        decoded.append(frame.path)
        return read_image(frame, side)

    monkeypatch.setattr(folder, "read_image", reading)
    train(run.plan, run.root, resume=True, coins_of=injected)
    verify_run(run)  # the statement that was made again knows that somebody asked out
    assert {path.parent.name for path in decoded} == {name for names in PATIENTS.values() for name in names} - {
        "zoe-1963"
    }
    gather_cohort(plan)
    assert "zoe-1963" in {path.parent.name for path in decoded}


def test_asking_again_changes_nothing_and_a_crash_in_between_is_made_good(run: RunDirectory) -> None:
    forget(run, "a", "zoe-1963")
    newest = entries(run, "a")
    assert forget(run, "a", "zoe-1963").known
    assert entries(run, "a") == newest
    own = run.own("a") / "forgotten.json"  # as after a crash between the file and the entry
    own.write_text(json.dumps({"version": 1, "hospital": False, "patients": ["a2", "zoe-1963"]}))
    assert forget(run, "a", "a2").known
    assert entries(run, "a").replace(" ", "").count('"what":"patient"') == 2


def test_who_is_unknown_is_told_without_naming_anybody(run: RunDirectory, images: Path) -> None:
    for name in ("b1", "nobody"):
        with pytest.raises(InputError) as refused:
            forget(run, "a", name)
        assert not [each for names in PATIENTS.values() for each in names if each in str(refused.value)]
        assert "nobody" not in str(refused.value)
    assert read_forgotten(run) == NOBODY
    shutil.rmtree(images / "a" / "zoe-1963")
    with pytest.raises(InputError, match="--deleted"):
        forget(run, "a", "zoe-1963")
    assert not forget(run, "a", "zoe-1963", deleted=True).known
    with pytest.raises(InputError, match="its hospitals are a, b, c, d"):
        forget(run, "x")


def test_a_run_does_not_go_on_with_a_hospital_that_left(run: RunDirectory) -> None:
    forget(run, "d")
    with pytest.raises(InputError, match="d asked out, so that the run cannot go on"):
        train(run.plan, run.root, resume=True, coins_of=injected)


def test_a_list_that_was_lost_or_changed_stops_the_run(run: RunDirectory) -> None:
    forget(run, "a", "zoe-1963")
    own = run.own("a") / "forgotten.json"
    whole = own.read_text()
    own.write_text(whole.replace('"patients"', '"patient"'))
    with pytest.raises(RunError, match="restore it from a backup") as damaged:
        read_forgotten(run)
    assert "zoe-1963" not in str(damaged.value)
    own.unlink()
    with pytest.raises(RunError, match="lacks somebody who asked out"):
        train(run.plan, run.root, resume=True, coins_of=injected)


def test_too_few_hospitals_or_patients_are_refused_in_words(run: RunDirectory, tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(InputError, match="nobody asked out"):
        train_again(run, tmp_path / "again")
    for name in ("c", "d"):
        forget(run, name)
    with pytest.raises(InputError, match="2 of 4 hospitals are left"):
        train_again(run, tmp_path / "again")
    everybody = {HospitalId("c"): frozenset(map(PatientId, PATIENTS["c"]))}
    with pytest.raises(DataError, match="c: nobody is left to train on"):
        gather_cohort(run.plan, Forgotten(everybody))
    assert not (tmp_path / "again").exists()


def test_built_in_patients_keep_their_places_when_one_leaves(tiny_plan: TinyPlan) -> None:
    whole = gather_cohort(tiny_plan())
    name, own = next(iter(whole.images.items()))
    left = gather_cohort(tiny_plan(), Forgotten({name: frozenset(own.patients[:1])}))
    assert left.images[name].patients == own.patients[1:]
    assert whole.probe_fit is not None
    assert left.probe_fit is not None
    assert set(whole.probe_fit.patients) - set(left.probe_fit.patients) == {own.patients[0]}
    gone = gather_cohort(tiny_plan(), Forgotten(hospitals=frozenset({name})))
    assert name not in gone.images
    assert gone.probe_fit is not None
    assert not set(own.patients) & set(gone.probe_fit.patients)
