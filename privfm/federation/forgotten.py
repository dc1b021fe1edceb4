"""Who asked out of a run: kept with each hospital's own files, and honoured by whoever gathers images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privfm.errors import RunError
from privfm.federation.directory import RunDirectory
from privfm.federation.initialisation import Start
from privfm.federation.network import load_network
from privfm.files import write_atomic
from privfm.ids import HospitalId, PatientId
from privfm.plan import Plan

__all__ = [
    "FILE",
    "NOBODY",
    "Again",
    "Forgotten",
    "Origin",
    "keep_forgotten",
    "read_forgotten",
    "read_origin",
]

FILE = "forgotten.json"
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Forgotten:
    """Those whose images are not read any more.

    Args:
        patients: their identifiers, as in the source of images, by the hospital that they asked.
        hospitals: that asked out as a whole.
    """

    patients: Mapping[HospitalId, frozenset[PatientId]] = field(default_factory=dict)
    hospitals: frozenset[HospitalId] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self.patients or self.hospitals)

    def leaves_out(self, hospital: str | None, patient: str) -> bool:
        """Whether a patient's images at a hospital are left out; where no source names hospitals, at any.

        Example:
            >>> forgotten = Forgotten({HospitalId("north"): frozenset({PatientId("ann")})})
            >>> forgotten.leaves_out("north", "ann"), forgotten.leaves_out("south", "ann")
            (True, False)
        """
        if hospital is None:
            return any(patient in names for names in self.patients.values())
        return hospital in self.hospitals or patient in self.patients.get(HospitalId(hospital), frozenset())

    def with_patient(self, hospital: HospitalId, patient: PatientId) -> Forgotten:
        """These and one more."""
        named = self.patients.get(hospital, frozenset()) | {patient}
        return replace(self, patients={**self.patients, hospital: named})

    def with_hospital(self, hospital: HospitalId) -> Forgotten:
        """These and a hospital as a whole."""
        return replace(self, hospitals=self.hospitals | {hospital})


NOBODY = Forgotten()


class _Kept(BaseModel):
    """What a hospital keeps, for its owner's eyes only."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    hospital: bool
    patients: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...]


class Origin(BaseModel):
    """What a run that was trained again says of where it comes from; it names no patient, and nobody's number of them.

    Args:
        of: the run, 32 hexadecimal digits, of which it is the same without those who asked out.
        folder: where that run lay.
        hospitals: that asked out as a whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    of: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    folder: str
    hospitals: tuple[str, ...]


def read_forgotten(directory: RunDirectory) -> Forgotten:
    """Return who asked out of a run, by its hospitals' own files.

    Raises:
        RunError: a file is not what was written; it names nobody.
    """
    origin = read_origin(directory)
    left = {HospitalId(name) for name in (origin.hospitals if origin else ())}
    patients = {}
    for hospital in directory.plan.hospitals:
        name = HospitalId(hospital.id)
        kept = _read(directory.own(name) / FILE)
        if kept is not None:
            patients[name] = frozenset(map(PatientId, kept.patients))
            left |= {name} if kept.hospital else set()
    return Forgotten({name: named for name, named in patients.items() if named}, frozenset(left))


def keep_forgotten(directory: RunDirectory, hospital: HospitalId, forgotten: Forgotten) -> None:
    """Write a hospital's own part, durably, readable for its owner only."""
    names = tuple(sorted(forgotten.patients.get(hospital, frozenset())))
    kept = _Kept(hospital=hospital in forgotten.hospitals, patients=names)
    write_atomic(directory.own(hospital) / FILE, kept.model_dump_json(indent=2).encode() + b"\n", mode=0o600)


def read_origin(directory: RunDirectory) -> Origin | None:
    """Return of which run this is the same without those who asked out; None of a run that was not trained again."""
    content = _content(directory.root / FILE)
    if content is None:
        return None
    try:
        return Origin.model_validate_json(content)
    except ValidationError:
        raise _damaged(directory.root / FILE) from None


def _read(path: Path) -> _Kept | None:
    content = _content(path)
    if content is None:
        return None
    try:
        return _Kept.model_validate_json(content)
    except ValidationError:
        raise _damaged(path) from None


def _content(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _damaged(path)
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); it says who asked out, restore it") from None


def _damaged(path: Path) -> RunError:
    return RunError(f"{path}: is not what was written; it says who asked out, restore it from a backup")


@dataclass(frozen=True)
class Again:
    """A run that is to be trained again, as if some had never been there.

    Args:
        of: the run as it was.
        forgotten: everybody who asked out of it.
    """

    of: RunDirectory
    forgotten: Forgotten

    def start(self, plan: Plan) -> Start:
        """Return where the run began, before anybody's images were read.

        Args:
            plan: of the new run.
        """
        facts = self.of.facts()
        learner = load_network(self.of.root, "start.safetensors")._replace(plan=plan)
        return Start(learner, facts.public_data, facts.notes)

    def keep(self, draft: RunDirectory, plan: Plan) -> None:
        """Write into a new run's folder whom it leaves out, and of which run it is the same."""
        hospitals = tuple(sorted(self.forgotten.hospitals))
        folder = str(self.of.root.absolute())
        origin = Origin(of=self.of.facts().run, folder=folder, hospitals=hospitals)
        draft.write_json(FILE, origin.model_dump(mode="json"))
        for hospital in plan.hospitals:
            if HospitalId(hospital.id) in self.forgotten.patients:
                keep_forgotten(draft, HospitalId(hospital.id), self.forgotten)
