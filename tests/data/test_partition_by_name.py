import numpy as np
import pytest

from privfm.data import ArrayPixels, ImageSet, hold_out_by_name, split_by_name
from privfm.errors import DataError
from privfm.ids import PatientId


def people(names: list[str]) -> ImageSet:
    patients = tuple(PatientId(name) for name in sorted(names))
    pixels = ArrayPixels(np.zeros((2 * len(patients), 1, 8, 8), dtype=np.float32))
    labels = np.arange(2 * len(patients)) % 3
    patient_of = np.repeat(np.arange(len(patients)), 2)
    return ImageSet("people", pixels, patients, patient_of, class_names=("a", "b", "c"), labels=labels)


NAMES = [f"patient {index}" for index in range(300)]


def test_a_patient_more_moves_nobody_to_another_hospital() -> None:
    few, more = (split_by_name(people(names), 5, seed=1) for names in (NAMES, [*NAMES, "one more"]))
    for hospital in few:
        assert set(few[hospital].patients) == set(more[hospital].patients) - {"one more"}
    sizes = [len(images.patients) for images in few.values()]
    assert min(sizes) > 35


def test_a_patient_more_moves_nobody_between_training_and_testing() -> None:
    few, more = (hold_out_by_name(people(names), 0.25, 1) for names in (NAMES, [*NAMES, "one more"]))
    for before, after in zip(few, more, strict=True):
        assert set(before.patients) == set(after.patients) - {"one more"}
    assert 45 < len(few[1].patients) < 105


def test_seeds_and_purposes_give_different_splits() -> None:
    first, second = (hold_out_by_name(people(NAMES), 0.25, seed)[1] for seed in (1, 2))
    assert set(first.patients) != set(second.patients)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        hold_out_by_name(people(["one"]), 0.5, 0)
    with pytest.raises(DataError, match="--hospitals"):
        split_by_name(people(["one", "two"]), 5, seed=0)
