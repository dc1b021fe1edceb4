"""Images with the patients, hospitals and labels that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray

from privfm.data.pixels import PickedPixels, Pixels
from privfm.ids import HospitalId, PatientId

__all__ = ["Boxes", "ImageSet", "Masks", "index_names"]


@runtime_checkable
class Masks(Protocol):
    """Pixel classes of each image at the run's size, loaded by index."""

    def load(self, indices: NDArray[np.int64]) -> UInt8[np.ndarray, "b h w"]:
        """Class of each pixel, 0 for background."""
        ...


@runtime_checkable
class Boxes(Protocol):
    """Bounding boxes of each image at the run's size, loaded by index."""

    def load(self, indices: NDArray[np.int64]) -> list[Float32[np.ndarray, "boxes 4"]]:
        """Per image, the boxes as left, top, right, bottom in pixels of the resized image."""
        ...


@dataclass(frozen=True, eq=False)
class _PickedMasks:
    whole: Masks
    picked: NDArray[np.int64]

    def load(self, indices: NDArray[np.int64]) -> UInt8[np.ndarray, "b h w"]:
        return self.whole.load(self.picked[indices])


@dataclass(frozen=True, eq=False)
class _PickedBoxes:
    whole: Boxes
    picked: NDArray[np.int64]

    def load(self, indices: NDArray[np.int64]) -> list[Float32[np.ndarray, "boxes 4"]]:
        return self.whole.load(self.picked[indices])


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and whom they show.

    Args:
        name: "tiles", "phantom", or a path.
        pixels: the images at the run's size.
        patients: distinct identifiers; every one occurs.
        patient_of: [images] index into `patients`.
        hospitals: distinct identifiers; () when the source does not say.
        hospital_of: [images] index into `hospitals`, or None.
        class_names: () when there are no labels.
        labels: [images] index into `class_names`, -1 where an image has none.
        public: True when the images are built in and contain nobody's private data.
        synthetic: True when the images were computed.
        masks: pixel classes, where the source has them.
        boxes: bounding boxes, where the source has them.
        official_test: [images] True where the source itself calls an image a test image.

    Raises:
        ValueError: when the parts do not fit together.
    """

    name: str
    pixels: Pixels
    patients: tuple[PatientId, ...]
    patient_of: NDArray[np.int64]
    hospitals: tuple[HospitalId, ...] = ()
    hospital_of: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None
    public: bool = False
    synthetic: bool = False
    masks: Masks | None = None
    boxes: Boxes | None = None
    official_test: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        _check_index("patient_of", self.patient_of, len(self), 0, len(self.patients))
        if len(np.unique(self.patient_of)) != len(self.patients):
            raise ValueError(f"patients={len(self.patients)} but {len(np.unique(self.patient_of))} have images")
        if self.hospital_of is not None:
            _check_index("hospital_of", self.hospital_of, len(self), 0, len(self.hospitals))
        if self.labels is not None:
            _check_index("labels", self.labels, len(self), -1, len(self.class_names))
        if self.official_test is not None and len(self.official_test) != len(self):
            raise ValueError(f"official_test has {len(self.official_test)} entries for {len(self)} images")

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        """The images at these indices, float32 in [0, 1]."""
        return self.pixels.load(indices)

    def images_of(self, patient: int) -> NDArray[np.int64]:
        """Indices of the images of `patients[patient]`, ascending."""
        return np.flatnonzero(self.patient_of == patient)

    def by_patient(self) -> list[NDArray[np.int64]]:
        """For every patient in order, the indices of their images, ascending; one pass for all of them."""
        order = np.argsort(self.patient_of, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.patient_of, minlength=len(self.patients)))[:-1])

    def select(self, images: NDArray[np.int64]) -> ImageSet:
        """The set of these images alone, with the patients that still occur; hospitals and classes keep their index."""
        kept, patient_of = np.unique(self.patient_of[images], return_inverse=True)
        return replace(
            self,
            pixels=PickedPixels(self.pixels, images),
            patients=tuple(self.patients[i] for i in kept),
            patient_of=patient_of.astype(np.int64),
            hospital_of=None if self.hospital_of is None else self.hospital_of[images],
            labels=None if self.labels is None else self.labels[images],
            masks=None if self.masks is None else _PickedMasks(self.masks, images),
            boxes=None if self.boxes is None else _PickedBoxes(self.boxes, images),
            official_test=None if self.official_test is None else self.official_test[images],
        )

    def select_patients(self, patients: NDArray[np.int64]) -> ImageSet:
        """The set of these patients' images alone."""
        return self.select(np.flatnonzero(np.isin(self.patient_of, patients)))

    def with_image_units(self) -> ImageSet:
        """The same images, each as a patient of its own, for data in which every image is another person."""
        seen = np.zeros(len(self.patients), dtype=np.int64)
        names = []
        for patient in self.patient_of.tolist():
            names.append(PatientId(f"{self.patients[patient]}#{seen[patient]}"))
            seen[patient] += 1
        return replace(self, patients=tuple(names), patient_of=np.arange(len(self), dtype=np.int64))


def _check_index(name: str, values: NDArray[np.int64], images: int, low: int, high: int) -> None:
    if values.shape != (images,):
        raise ValueError(f"{name} has shape {values.shape} for {images} images")
    if images and (values.min() < low or values.max() >= high):
        raise ValueError(f"{name} must lie in [{low}, {high}), found {values.min()} to {values.max()}")


def index_names(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Distinct names, sorted, and for each given name its place among them.

    Example:
        >>> index_names(["b", "a", "b"])[0]
        ('a', 'b')
    """
    distinct = tuple(sorted(set(names)))
    place = {name: index for index, name in enumerate(distinct)}
    return distinct, np.array([place[name] for name in names], dtype=np.int64)
