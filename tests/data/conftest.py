from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from privfm.data import ArrayPixels, ImageSet
from privfm.ids import HospitalId, PatientId


@pytest.fixture
def make_images() -> Callable[..., ImageSet]:
    """Image sets in memory: image i is filled with value i / 1000, so that it can be told apart."""

    def build(
        patient_of: list[int],
        labels: list[int] | None = None,
        hospital_of: list[int] | None = None,
        size: int = 4,
    ) -> ImageSet:
        values = np.arange(len(patient_of), dtype=np.float32) / 1000
        hospitals = [] if hospital_of is None else range(max(hospital_of) + 1)
        return ImageSet(
            name="made",
            pixels=ArrayPixels(np.broadcast_to(values[:, None, None, None], (len(values), 1, size, size))),
            patients=tuple(PatientId(f"p{i}") for i in range(max(patient_of) + 1)),
            patient_of=np.array(patient_of, dtype=np.int64),
            hospitals=tuple(HospitalId(f"h{i}") for i in hospitals),
            hospital_of=None if hospital_of is None else np.array(hospital_of, dtype=np.int64),
            class_names=() if labels is None else tuple(f"c{i}" for i in range(max(labels) + 1)),
            labels=None if labels is None else np.array(labels, dtype=np.int64),
        )

    return build
