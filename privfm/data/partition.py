"""Which patients are held out, and at which hospital the others are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privfm.data.imageset import ImageSet
from privfm.errors import DataError
from privfm.ids import HospitalId, PatientId

__all__ = [
    "hold_out",
    "official_test_patients",
    "own_hospitals",
    "patient_classes",
    "shared_patients",
    "simulated_names",
    "split_by_hospital",
]


def patient_classes(images: ImageSet) -> NDArray[np.int64]:
    """For each patient the class that most of their labelled images have, the lowest on a tie, -1 without labels."""
    if images.labels is None:
        return np.full(len(images.patients), -1, dtype=np.int64)
    labelled = images.labels >= 0
    votes = np.zeros((len(images.patients), len(images.class_names)), dtype=np.int64)
    np.add.at(votes, (images.patient_of[labelled], images.labels[labelled]), 1)
    return np.where(votes.sum(axis=1) > 0, votes.argmax(axis=1), -1)


def shared_patients(images: ImageSet) -> dict[PatientId, tuple[HospitalId, ...]]:
    """Patients with images at more than one hospital, and those hospitals; {} when the source names no hospitals."""
    if images.hospital_of is None:
        return {}
    pairs = np.unique(np.stack([images.patient_of, images.hospital_of]), axis=1).T
    counts = np.bincount(pairs[:, 0], minlength=len(images.patients))
    return {
        images.patients[patient]: tuple(images.hospitals[h] for p, h in pairs.tolist() if p == patient)
        for patient in np.flatnonzero(counts > 1).tolist()
    }


def hold_out(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on and images to test on, never of one patient in both.

    A source with an official test split keeps it, whatever the fraction, as long as both sides of it occur. Otherwise
    each class gives about `fraction` of its patients, at least one where it has two; within a class they are spread
    over the hospitals.

    Raises:
        DataError: when either side would be empty.
        ValueError: when fraction is not between 0 and 1.

    Example:
        >>> from privfm.data.tiles import load_tiles
        >>> train, test = hold_out(load_tiles(), 0.2, seed=0)
        >>> len(set(train.patients) & set(test.patients)), len(test.class_names)
        (0, 16)
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1")
    test = official_test_patients(images)
    if test is None:
        test = _stratified_patients(images, fraction, np.random.default_rng(seed))
    train = np.setdiff1d(np.arange(len(images.patients)), test)
    if not len(test) or not len(train):
        raise DataError(f"{images.name} has {len(images.patients)} patients, too few to hold some out for testing")
    return images.select_patients(train), images.select_patients(test)


def official_test_patients(images: ImageSet) -> NDArray[np.int64] | None:
    """The patients that the source itself tests on; None when it does not say, or tests on all."""
    if images.official_test is None:
        return None
    tested = np.unique(images.patient_of[images.official_test])
    return tested if 0 < len(tested) < len(images.patients) else None


def _stratified_patients(images: ImageSet, fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    classes, hospitals = patient_classes(images), _first_hospitals(images)
    order = np.lexsort((rng.random(len(classes)), hospitals, classes))
    chosen = [_spread(stratum, fraction, rng) for stratum in np.split(order, _class_starts(classes[order]))]
    return np.sort(np.concatenate(chosen))


def _first_hospitals(images: ImageSet) -> NDArray[np.int64]:
    if images.hospital_of is None:
        return np.zeros(len(images.patients), dtype=np.int64)
    _, first = np.unique(images.patient_of, return_index=True)
    return images.hospital_of[first]


def _class_starts(sorted_classes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.diff(sorted_classes)) + 1


def _spread(patients: NDArray[np.int64], fraction: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """A systematic sample: evenly spaced from a random start, so that neighbours in the order share the burden."""
    count = len(patients)
    wanted = min(max(1, round(fraction * count)), count - 1)
    positions = (np.arange(wanted) + rng.random()) * count / max(wanted, 1)
    return patients[positions.astype(np.int64)]


def split_by_hospital(
    images: ImageSet, hospitals: int, *, alpha: float, min_patients: int, seed: int, allow_shared: bool = False
) -> dict[HospitalId, ImageSet]:
    """Each hospital's images: the source's own hospitals, or a simulated split with uneven classes.

    The simulated split draws, per class, the hospitals' shares from a symmetric Dirichlet distribution and deals the
    class's patients accordingly; then the largest hospitals give patients to those below the floor.

    Args:
        hospitals: how many to simulate; not used where the source names its own.
        alpha: concentration; small values make hospitals specialise.
        min_patients: the floor for a simulated hospital.
        allow_shared: accept patients with images at several hospitals; their budgets compose.

    Raises:
        DataError: when a hospital has no images, a patient is at two hospitals without being declared, or there are
            fewer patients than the floor needs.
        ValueError: when a number is out of range.

    Source: Hsu et al. 2019, arXiv 1909.06335, over patients instead of images.
    """
    if hospitals < 1 or min_patients < 1 or not alpha > 0:
        raise ValueError(f"hospitals={hospitals}, min_patients={min_patients} and alpha={alpha} must be positive")
    if images.hospital_of is not None:
        return own_hospitals(images, images.hospital_of, allow_shared)
    owner = _dirichlet_owners(images, hospitals, alpha, min_patients, np.random.default_rng(seed))
    return {
        name: images.select_patients(np.flatnonzero(owner == index))
        for index, name in enumerate(simulated_names(hospitals))
    }


def own_hospitals(images: ImageSet, hospital_of: NDArray[np.int64], allow_shared: bool) -> dict[HospitalId, ImageSet]:
    """Each hospital's images where the source names hospitals; DataError for shared or missing patients."""
    shared = shared_patients(images)
    if shared and not allow_shared:
        patient, places = next(iter(shared.items()))
        raise DataError(
            f"{images.name}: patient {patient} is at hospitals {' and '.join(places)} ({len(shared)} such patients); "
            "rename the folders if these are different people, or set data.max_hospitals_per_patient"
        )
    split = {}
    for index, name in enumerate(images.hospitals):
        mine = np.flatnonzero(hospital_of == index)
        if not len(mine):
            raise DataError(f"{images.name}: hospital {name} has no images to train on; leave it out or add patients")
        split[name] = images.select(mine)
    return split


def _dirichlet_owners(
    images: ImageSet, hospitals: int, alpha: float, min_patients: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    if len(images.patients) < hospitals * min_patients:
        raise DataError(
            f"{images.name} has {len(images.patients)} patients, too few for {hospitals} hospitals of at least "
            f"{min_patients}; ask for fewer hospitals"
        )
    classes = patient_classes(images)
    owner = np.empty(len(classes), dtype=np.int64)
    for label in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == label))
        edges = np.cumsum(rng.dirichlet(np.full(hospitals, alpha)))[:-1] * len(members)
        owner[members] = np.searchsorted(edges, np.arange(len(members)) + rng.random(), side="right")
    _raise_to_floor(owner, hospitals, min_patients, rng)
    return owner


def _raise_to_floor(owner: NDArray[np.int64], hospitals: int, floor: int, rng: np.random.Generator) -> None:
    """Move random patients, one at a time, from the largest hospital to the smallest until none is below the floor."""
    while True:
        sizes = np.bincount(owner, minlength=hospitals)
        poorest = int(sizes.argmin())
        if sizes[poorest] >= floor:
            return
        owner[rng.choice(np.flatnonzero(owner == sizes.argmax()))] = poorest


def simulated_names(hospitals: int) -> list[HospitalId]:
    """The names of so many simulated hospitals."""
    width = len(str(hospitals))
    return [HospitalId(f"hospital-{index + 1:0{width}d}") for index in range(hospitals)]
