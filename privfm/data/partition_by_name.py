"""Splits of real patients, in which a patient more or less moves nobody else.

A guarantee about one patient compares two data sets that differ in that patient. If whether others are trained on, or
where, depended on who else there is, the two would differ in many.
"""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import Float

from privfm.data.imageset import ImageSet
from privfm.data.partition import official_test_patients, own_hospitals, simulated_names
from privfm.errors import DataError
from privfm.ids import HospitalId

__all__ = ["hold_out_by_name", "split_by_name"]


def hold_out_by_name(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on and images to test on, where each patient's side depends on their own name and `seed` alone.

    A source with an official test split keeps it.

    Raises:
        DataError: when either side would be empty.
    """
    test = official_test_patients(images)
    if test is None:
        test = np.flatnonzero(_name_coins(images, seed, "held out") < fraction)
    train = np.setdiff1d(np.arange(len(images.patients)), test)
    if not len(test) or not len(train):
        raise DataError(f"{images.name} has {len(images.patients)} patients, too few to hold some out for testing")
    return images.select_patients(train), images.select_patients(test)


def split_by_name(
    images: ImageSet, hospitals: int, *, seed: int, allow_shared: bool = False
) -> dict[HospitalId, ImageSet]:
    """Each hospital's images: the source's own hospitals, or simulated ones by each patient's own name and `seed`.

    Raises:
        DataError: when a hospital has no images, or a patient is at two hospitals without being declared.
    """
    if images.hospital_of is not None:
        return own_hospitals(images, images.hospital_of, allow_shared)
    owner = (_name_coins(images, seed, "hospital") * hospitals).astype(np.int64)
    split = {}
    for index, name in enumerate(simulated_names(hospitals)):
        mine = np.flatnonzero(owner == index)
        if not len(mine):
            raise DataError(f"{images.name}: too few patients for {hospitals} hospitals; ask for fewer: --hospitals")
        split[name] = images.select_patients(mine)
    return split


def _name_coins(images: ImageSet, seed: int, purpose: str) -> Float[np.ndarray, " patients"]:
    """A number in [0, 1) for every patient, from their name alone."""
    key = f"{purpose} {seed}".encode()
    digests = [hashlib.blake2b(name.encode(), key=key, digest_size=8).digest() for name in images.patients]
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in digests]) * 2.0**-53
