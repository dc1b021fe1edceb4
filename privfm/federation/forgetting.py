"""A patient, or a hospital, asks out of a run: what is written down, what still holds, and training again without them.

What was released stays released. A patient who asks out is protected by the noise that was there all along, and by
nothing else; so nothing is refunded for it. What can be had beside is a model that never saw them: the run trained
again, from its start, as if they had never been there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from privfm.data.manifest import MANIFEST_NAME
from privfm.data.sources import scan
from privfm.dp.accounting import epsilon
from privfm.dp.figures import figure
from privfm.dp.ledger import Ledger
from privfm.errors import InputError
from privfm.federation.cohort import gather_cohort
from privfm.federation.directory import RunDirectory, begun_plan, check_free
from privfm.federation.forgotten import Again, Forgotten, keep_forgotten, read_forgotten
from privfm.federation.ledgers import declaration_of
from privfm.federation.observer import Observer
from privfm.federation.records import RunResult
from privfm.federation.simulation import CoinsOf, system_coins
from privfm.federation.stating import BUILT_IN
from privfm.federation.training import train
from privfm.federation.verifying import verify_run
from privfm.ids import HospitalId, PatientId
from privfm.plan import Plan

__all__ = ["Farewell", "check_enough_stay", "forget", "train_again"]


@dataclass(frozen=True)
class Farewell:
    """What holds after somebody asked out. It names no patient; `files` are for the hospital's own eyes.

    Args:
        run: 32 hexadecimal digits.
        hospital: whom they asked.
        what: who asked: one patient of it, or the hospital as a whole.
        known: whether they had asked before; then nothing was written.
        private: whether a guarantee holds for what the hospital released.
        epsilon, delta: what it has spent over all runs on its ledger. Nothing was refunded.
        first_round: the first whose sum the hospital is in; None where it is in no sum, and the model never saw them.
        other_runs: on the same ledger; whoever took part in them asks out of each.
        files: images that the hospital may want to delete.
    """

    run: str
    hospital: str
    what: Literal["patient", "hospital"]
    known: bool
    private: bool
    epsilon: float
    delta: float
    first_round: int | None
    other_runs: tuple[str, ...]
    files: tuple[Path, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "files": [str(file) for file in self.files], "guarantee": list(self.sentences())}

    def sentences(self) -> Iterator[str]:
        """What still holds, in words."""
        yield (
            f"Noted in the ledger of {self.hospital}, with no name. Whatever was released before stays released and "
            "charged: nothing is refunded."
        )
        yield from self._promise() if self.private else (self._no_promise(),)
        if self.first_round is None:
            yield f"No round's sum holds anything of {self.hospital}: the model as it stands never saw them."
        else:
            yield (
                f"{self.hospital} is in the sums from round {self.first_round} on. Of what a run keeps only its start "
                "is older than that, so training again begins there."
            )
        if self.other_runs:
            yield (
                f"The ledger knows of other runs, {', '.join(self.other_runs)}: whoever took part in them asks out of "
                "each. New runs read whatever images they find."
            )

    def _promise(self) -> Iterator[str]:
        odds = f"e^{figure(self.epsilon)} = {math.exp(min(700.0, self.epsilon)):.3g}"
        who = "this patient" if self.what == "patient" else "one of its patients, whoever it is,"
        yield (
            f"What holds, now as before: at {self.hospital} epsilon {figure(self.epsilon)} was spent at delta "
            f"{self.delta:g}. Whatever somebody concludes about {who} from all that it released, the odds of that "
            f"conclusion are at most {odds} times what they would be had they never taken part, except with "
            f"probability {self.delta:g}."
        )
        if self.what == "hospital":
            yield "It does not hide that the hospital took part, nor what is true of its patients in general."

    def _no_promise(self) -> str:
        return (
            "NO GUARANTEE holds: noise was left out, or its coins are known. What the model gives away of them, it "
            "gives away for good: withdraw it, with all copies, and train again without them (--out NEW)."
        )


def forget(directory: RunDirectory, hospital: str, patient: str | None = None, *, deleted: bool = False) -> Farewell:
    """Note that a patient of a hospital, or the hospital as a whole, asked out of a run; see `Farewell`.

    Their images are not read any more when the run goes on, is trained again or is audited; deleting files is the
    hospital's. Doing it again changes nothing, and finishes what a crash left half done.

    Args:
        patient: as the source of images calls them; None for the hospital as a whole.
        deleted: whether the images are gone already, so that the identifier cannot be looked up.

    Raises:
        InputError: the run has no such hospital, or the hospital no such patient; the message names neither them nor
            others.
        LedgerError: the ledger is damaged or in use, or knows nothing of the run.
        RunError, VerificationError: the run's folder is damaged.
    """
    plan, run, name = begun_plan(directory), directory.facts().run, HospitalId(hospital)
    names = [each.id for each in plan.hospitals]
    if hospital not in names:
        raise InputError(f"--hospital {hospital}: not a hospital of this run; its hospitals are {', '.join(names)}")
    before = read_forgotten(directory)
    with Ledger.open(directory.ledger(hospital), hospital) as ledger:
        declaration_of(ledger, run)
        if patient is None:
            after, files = before.with_hospital(name), _files(plan, hospital, None)
        else:
            known = patient in before.patients.get(name, ())
            if not (known or deleted or _is_there(plan, name, patient, before)):
                raise InputError(_unknown(hospital))
            after, files = before.with_patient(name, PatientId(patient)), _files(plan, hospital, patient)
        if after != before:  # first, so that a crash leaves nobody to be read who was noted in the ledger
            keep_forgotten(directory, name, after)
        _note(ledger, run, name, after)
        first = next((each.round for each in directory.records() if hospital in each.survivors), None)
        return Farewell(
            run=run,
            hospital=hospital,
            what="hospital" if patient is None else "patient",
            known=after == before,
            private=ledger.private,
            epsilon=epsilon(ledger.events(), plan.privacy.delta),
            delta=plan.privacy.delta,
            first_round=first,
            other_runs=tuple(each.declaration.run for each in ledger.runs() if each.declaration.run != run),
            files=files,
        )


def _unknown(hospital: str) -> str:
    return (
        f"--patient: {hospital} has no patient of that identifier in the run's images; give it as the images' source "
        "does or, if their images are deleted already, add --deleted"
    )


def _note(ledger: Ledger, run: str, hospital: HospitalId, forgotten: Forgotten) -> None:
    """Write an entry for everybody who has none yet; more than one only after a crash."""
    record = next(each for each in ledger.runs() if each.declaration.run == run)
    for _ in range(len(forgotten.patients.get(hospital, ())) - record.patients_out):
        ledger.note_asked_out(run, "patient")
    if hospital in forgotten.hospitals and not record.hospital_out:
        ledger.note_asked_out(run, "hospital")


def _is_there(plan: Plan, hospital: HospitalId, patient: str, before: Forgotten) -> bool:
    if _is_folder(plan):
        places = {entry.hospital for entry in scan(Path(plan.data.source)).entries if entry.patient == patient}
        if places != {None}:
            return hospital in places
    cohort = gather_cohort(plan, before)
    held_out = [images for images in (cohort.probe_fit, cohort.probe_test) if images is not None]
    known = {name for images in (cohort.images.get(hospital), *held_out) if images for name in images.patients}
    elsewhere = {name for other, images in cohort.images.items() if other != hospital for name in images.patients}
    stems = {name.rpartition("#")[0] for name in known} if plan.privacy.unit == "image" else set()
    return patient in (known - elsewhere) | stems


def _files(plan: Plan, hospital: str, patient: str | None) -> tuple[Path, ...]:
    """Return the files of whoever asked out, where images lie in files of their own."""
    if not _is_folder(plan):
        return ()
    entries = scan(Path(plan.data.source)).entries
    mine = (each for each in entries if each.hospital == hospital or (each.hospital is None and patient is not None))
    return tuple(dict.fromkeys(each.frame.path for each in mine if patient in (None, each.patient)))


def _is_folder(plan: Plan) -> bool:
    source = Path(plan.data.source)
    return plan.data.source not in BUILT_IN and (source.is_dir() or source.name == MANIFEST_NAME)


def check_enough_stay(directory: RunDirectory, hospital: str) -> None:
    """Raise InputError when a run could not be trained again if a hospital left as a whole."""
    _plan_without(begun_plan(directory), read_forgotten(directory).with_hospital(HospitalId(hospital)))


def train_again(
    directory: RunDirectory, out: Path, *, observer: Observer | None = None, coins_of: CoinsOf = system_coins
) -> RunResult:
    """Return the result of a new run in `out`: the same plan and public randomness without all who asked out.

    It starts where the run did, before anybody's images were read, and reads nothing else of it. Every round is
    released and charged anew, on the ledgers that the run has: spending adds up there, under their lifetime caps, and
    the run itself can no longer go on.

    A hospital that left is not in the new plan. Public numbers that followed from how many there are, the threshold
    and the range of masked values, are found anew.

    Raises:
        InputError: nobody asked out, or fewer than three hospitals are left.
        BudgetExceeded: a lifetime cap has no room for training again.
        VerificationError: the run is not what its ledgers say.
    """
    check_free(out)
    forgotten = read_forgotten(directory)
    if not (forgotten.patients or forgotten.hospitals):
        raise InputError(f"{directory.root}: nobody asked out of this run")
    plan = _plan_without(begun_plan(directory), forgotten)
    verify_run(directory)
    ledgers = (directory.root / "ledgers").resolve()
    again = Again(directory, forgotten)
    return train(plan, out, ledgers=ledgers, again=again, observer=observer, coins_of=coins_of)


def _plan_without(plan: Plan, forgotten: Forgotten) -> Plan:
    left = tuple(each for each in plan.hospitals if each.id not in forgotten.hospitals)
    if len(left) == len(plan.hospitals):
        return plan
    if len(left) < 3:
        raise InputError(
            f"{len(left)} of {len(plan.hospitals)} hospitals are left, and a sum over fewer than 3 shows one to "
            "another; withdraw the model instead"
        )
    secagg = plan.secagg.model_copy(update={"threshold": None, "clamp": None})
    return plan.model_copy(update={"hospitals": left, "secagg": secagg})
