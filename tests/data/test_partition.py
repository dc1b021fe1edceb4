from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from privfm.data import ImageSet, hold_out, patient_classes, shared_patients, split_by_hospital
from privfm.errors import DataError

Maker = Callable[..., ImageSet]


def many(make_images: Maker, patients: int = 60, classes: int = 3) -> ImageSet:
    patient_of = [i for i in range(patients) for _ in range(3)]
    return make_images(patient_of, labels=[p % classes for p in patient_of])


def test_hold_out_keeps_patients_whole_and_classes_balanced(make_images: Maker) -> None:
    images = many(make_images)
    train, test = hold_out(images, 0.25, seed=1)
    assert set(train.patients).isdisjoint(test.patients)
    assert set(train.patients) | set(test.patients) == set(images.patients)
    assert np.bincount(patient_classes(test)).tolist() == [5, 5, 5]
    assert len(train) + len(test) == len(images)


def test_hold_out_follows_the_seed_alone(make_images: Maker) -> None:
    first, second, other = (hold_out(many(make_images), 0.25, seed=s)[1].patients for s in (1, 1, 2))
    assert first == second
    assert first != other


def test_hold_out_tests_every_class_that_can_spare_a_patient(make_images: Maker) -> None:
    images = make_images([0, 1, 2, 3, 4], labels=[0, 0, 1, 2, 2])
    train, test = hold_out(images, 0.1, seed=0)
    assert sorted(patient_classes(test).tolist()) == [0, 2]
    assert sorted(patient_classes(train).tolist()) == [0, 1, 2]


def test_hold_out_is_spread_over_hospitals(make_images: Maker) -> None:
    images = make_images(list(range(40)), labels=[0] * 40, hospital_of=[i // 8 for i in range(40)])
    for seed in range(5):
        _, test = hold_out(images, 0.25, seed=seed)
        assert test.hospital_of is not None
        assert np.bincount(test.hospital_of, minlength=5).tolist() == [2] * 5


def test_hold_out_honours_an_official_split(make_images: Maker) -> None:
    images = replace(make_images([0, 1, 2, 3]), official_test=np.array([False, True, False, True]))
    test = hold_out(images, 0.9, seed=0)[1]
    assert test.patients == ("p1", "p3")
    assert len(hold_out(test, 0.5, seed=0)[1].patients) == 1


def test_hold_out_of_a_lone_patient_is_refused(make_images: Maker) -> None:
    with pytest.raises(DataError, match="1 patients, too few"):
        hold_out(make_images([0, 0]), 0.2, seed=0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_hold_out_fraction_out_of_range(make_images: Maker, fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        hold_out(make_images([0, 1]), fraction, seed=0)


def test_simulated_hospitals_share_out_all_patients_once(make_images: Maker) -> None:
    images = many(make_images)
    split = split_by_hospital(images, 5, alpha=0.3, min_patients=4, seed=3)
    assert list(split) == [f"hospital-{i}" for i in range(1, 6)]
    everyone = [patient for part in split.values() for patient in part.patients]
    assert sorted(everyone) == sorted(images.patients)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_no_hospital_is_below_the_floor(make_images: Maker, alpha: float, seed: int) -> None:
    split = split_by_hospital(many(make_images), 6, alpha=alpha, min_patients=10, seed=seed)
    assert min(len(part.patients) for part in split.values()) == 10


def test_small_alpha_makes_hospitals_specialise_in_classes(make_images: Maker) -> None:
    largest = []
    for seed in range(6):
        split = split_by_hospital(many(make_images, patients=300), 3, alpha=0.1, min_patients=15, seed=seed)
        largest += [np.bincount(patient_classes(part)).max() / len(part.patients) for part in split.values()]
    assert np.mean(largest) > 0.65


def test_small_alpha_skews_classes_more_than_large_alpha(make_images: Maker) -> None:
    def skew(alpha: float) -> float:
        images = many(make_images, patients=300)
        split = split_by_hospital(images, 4, alpha=alpha, min_patients=1, seed=0)
        shares = [np.bincount(patient_classes(part), minlength=3) / len(part.patients) for part in split.values()]
        return float(np.std(shares, axis=0).mean())

    assert skew(0.1) > 3 * skew(100.0)


def test_too_few_patients_for_the_floor(make_images: Maker) -> None:
    with pytest.raises(DataError, match="60 patients, too few for 7 hospitals of at least 10"):
        split_by_hospital(many(make_images), 7, alpha=1.0, min_patients=10, seed=0)


def test_own_hospitals_are_kept(make_images: Maker) -> None:
    images = make_images([0, 0, 1, 2], hospital_of=[1, 1, 0, 1])
    split = split_by_hospital(images, 9, alpha=1.0, min_patients=1, seed=0)
    assert {name: part.patients for name, part in split.items()} == {"h0": ("p1",), "h1": ("p0", "p2")}


def test_a_patient_at_two_hospitals_must_be_declared(make_images: Maker) -> None:
    images = make_images([0, 0, 1], hospital_of=[0, 1, 1])
    assert shared_patients(images) == {"p0": ("h0", "h1")}
    with pytest.raises(DataError, match="patient p0 is at hospitals h0 and h1"):
        split_by_hospital(images, 2, alpha=1.0, min_patients=1, seed=0)
    split = split_by_hospital(images, 2, alpha=1.0, min_patients=1, seed=0, allow_shared=True)
    assert split["h0"].patients == ("p0",)
    assert split["h1"].patients == ("p0", "p1")


def test_a_hospital_that_lost_all_its_patients_is_named(make_images: Maker) -> None:
    images = make_images([0, 1], hospital_of=[0, 1]).select(np.array([0]))
    with pytest.raises(DataError, match="hospital h1 has no images"):
        split_by_hospital(images, 2, alpha=1.0, min_patients=1, seed=0)


def test_no_hospitals_no_shared_patients(make_images: Maker) -> None:
    assert shared_patients(make_images([0, 1])) == {}


def test_a_patients_class_is_the_most_frequent_one(make_images: Maker) -> None:
    images = make_images([0, 0, 0, 1, 2], labels=[1, 1, 0, -1, 2])
    assert patient_classes(images).tolist() == [1, -1, 2]
