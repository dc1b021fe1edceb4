"""What a hospital has, told locally before it enrols: counts, damage, doubtful identifiers, and repeated images."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privfm.data.decoding import quiet_decoders
from privfm.data.duplicates import difference_hash, near_duplicates, thumbnail
from privfm.data.identifiers import identifier_warnings
from privfm.data.listing import Entry, Listing
from privfm.data.pixels import to_channels
from privfm.data.sources import scan
from privfm.errors import DataError

__all__ = ["DataReport", "HospitalCount", "NearDuplicate", "check_folder"]

_SIDE = 32
_LISTED_PAIRS = 100


@dataclass(frozen=True)
class HospitalCount:
    """How much a hospital holds; images per patient as fewest, median, most."""

    hospital: str
    patients: int
    images: int
    images_per_patient: tuple[int, float, int]


@dataclass(frozen=True)
class NearDuplicate:
    """Two images of different patients that look nearly alike."""

    first: str
    first_patient: str
    second: str
    second_patient: str


@dataclass(frozen=True)
class DataReport:
    """What was found. It holds names of patients and files: it is for the hospital's own eyes.

    Args:
        path: the folder.
        kind: "folder", "manifest" or "dicom".
        patients, images: that can be used.
        images_per_patient: fewest, median, most.
        hospitals: one entry each, empty when the source names none.
        labels: images of each class.
        sizes: images of each size, as "width x height", the commonest ten.
        modes: images of each way of storing pixels.
        problems: what training refuses, one line each.
        blank: images that show nothing and are accepted all the same, as the last slices of a series.
        passed_over: how many files are of no kind that is read.
        identifier_warnings: doubts that the ids are persons.
        shared_patients: patient ids at more than one hospital, and where.
        duplicates: repeated images across patients, at most 100 of them.
        duplicate_pairs: how many there are.
    """

    path: str
    kind: str
    patients: int
    images: int
    images_per_patient: tuple[int, float, int]
    hospitals: tuple[HospitalCount, ...]
    labels: dict[str, int]
    sizes: dict[str, int]
    modes: dict[str, int]
    problems: tuple[str, ...]
    blank: tuple[str, ...]
    passed_over: int
    identifier_warnings: tuple[str, ...]
    shared_patients: dict[str, tuple[str, ...]]
    duplicates: tuple[NearDuplicate, ...]
    duplicate_pairs: int

    @property
    def usable(self) -> bool:
        """Whether training would accept the data as they are, where the plan declares `max_hospitals_per_patient`."""
        return self.images > 0 and not self.problems

    @property
    def max_hospitals_per_patient(self) -> int:
        """What the plan's key `data.max_hospitals_per_patient` must be at least; above 1 it has to be written there."""
        return max((len(places) for places in self.shared_patients.values()), default=1)

    def to_dict(self) -> dict[str, object]:
        """The report for JSON."""
        needed = {"max_hospitals_per_patient": self.max_hospitals_per_patient}
        return {"usable": self.usable, **needed, **asdict(self)}


@dataclass(frozen=True, eq=False)
class _Look:
    """What reading one image gave: its hash and thumbnail, or why it cannot be read."""

    hash: np.uint64
    thumbnail: NDArray[np.float32]
    blank: bool = False
    problem: str | None = None


def check_folder(path: Path, *, threads: int = 4) -> DataReport:
    """A report on a folder of images, a manifest.csv or a DICOM folder; every image is read once.

    Damaged files are listed, all of them, and do not stop the check.

    Args:
        threads: how many images are decoded at once.

    Raises:
        DataError: when there is no such folder, nothing in it is an image, or DICOM support is not installed.
    """
    listing = scan(path)
    with quiet_decoders(), ThreadPoolExecutor(threads) as pool:
        looks = list(pool.map(lambda entry: _look(listing, entry), listing.entries))
    return _report(path, listing, looks)


def _report(path: Path, listing: Listing, looks: list[_Look]) -> DataReport:
    readable = [index for index, look in enumerate(looks) if look.problem is None]
    entries = [listing.entries[index] for index in readable]
    pairs = _repeated(entries, [looks[index] for index in readable])
    images_of = Counter(entry.patient for entry in entries)
    return DataReport(
        path=str(path),
        kind=listing.kind,
        patients=len(images_of),
        images=len(entries),
        images_per_patient=_spread(images_of),
        hospitals=_hospitals(entries),
        labels=dict(sorted(Counter(entry.label for entry in entries if entry.label is not None).items())),
        sizes=dict(Counter(f"{entry.width} x {entry.height}" for entry in entries).most_common(10)),
        modes=dict(Counter(entry.mode for entry in entries).most_common()),
        problems=(*listing.complaints, *dict.fromkeys(look.problem for look in looks if look.problem)),
        blank=tuple(_place(listing.entries[index]) for index in readable if looks[index].blank),
        passed_over=len(listing.passed_over),
        identifier_warnings=identifier_warnings(images_of),
        shared_patients=_shared(entries),
        duplicates=tuple(_named(entries[i], entries[j]) for i, j in pairs[:_LISTED_PAIRS].tolist()),
        duplicate_pairs=len(pairs),
    )


def _look(listing: Listing, entry: Entry) -> _Look:
    try:
        image = to_channels(listing.decode(entry.frame, _SIDE), 1)[0]
    except DataError as error:
        return _Look(np.uint64(0), np.empty(0, np.float32), problem=str(error))
    return _Look(difference_hash(image), thumbnail(image), blank=bool((image == image.flat[0]).all()))


def _repeated(entries: list[Entry], looks: list[_Look]) -> NDArray[np.int64]:
    if len(entries) < 2:
        return np.empty((0, 2), dtype=np.int64)
    place = {patient: index for index, patient in enumerate(sorted({entry.patient for entry in entries}))}
    groups = np.array([place[entry.patient] for entry in entries], dtype=np.int64)
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    return near_duplicates(hashes, np.stack([look.thumbnail for look in looks]), groups)


def _named(first: Entry, second: Entry) -> NearDuplicate:
    return NearDuplicate(_place(first), first.patient, _place(second), second.patient)


def _place(entry: Entry) -> str:
    return str(entry.frame.path) if entry.frame.of == 1 else f"{entry.frame.path} (image {entry.frame.index + 1})"


def _spread(images_of: Counter[str]) -> tuple[int, float, int]:
    counts = sorted(images_of.values()) or [0]
    return counts[0], float(np.median(counts)), counts[-1]


def _hospitals(entries: list[Entry]) -> tuple[HospitalCount, ...]:
    by_hospital: dict[str, Counter[str]] = {}
    for entry in entries:
        if entry.hospital is not None:
            by_hospital.setdefault(entry.hospital, Counter())[entry.patient] += 1
    return tuple(
        HospitalCount(name, len(images_of), sum(images_of.values()), _spread(images_of))
        for name, images_of in sorted(by_hospital.items())
    )


def _shared(entries: list[Entry]) -> dict[str, tuple[str, ...]]:
    places: dict[str, set[str]] = {}
    for entry in entries:
        if entry.hospital is not None:
            places.setdefault(entry.patient, set()).add(entry.hospital)
    return {patient: tuple(sorted(where)) for patient, where in sorted(places.items()) if len(where) > 1}
