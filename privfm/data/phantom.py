"""The built-in set `phantom`: synthetic patients with computed endoscopy-like frames, as many and as large as wanted.

It is synthetic throughout and shows nobody. Each patient has a condition; frames of a patient with polyps mostly show
one, with its mask and box, and the rest of them are normal. A frame is drawn when it is loaded, and only from the seed,
its patient and its number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from numpy.typing import NDArray

from privfm.data.endoscopy import INFLAMED, NORMAL, POLYP, Frames, draw_frames
from privfm.data.imageset import ImageSet
from privfm.data.keyed import KeyedDraws, join_keys
from privfm.data.pixels import to_channels
from privfm.ids import PatientId

__all__ = ["CLASS_NAMES", "load_phantom"]

CLASS_NAMES = ("normal", "polyp", "inflamed")
_DEFAULT_PATIENTS = 300
_FEWEST_FRAMES, _MOST_FRAMES = 6, 18
_CHUNK_PIXELS = 2**17


@dataclass(frozen=True, eq=False)
class _Script:
    """What each image of the set shows: [images] keys of patient and frame, and finding."""

    patient_keys: NDArray[np.uint64]
    frame_keys: NDArray[np.uint64]
    findings: NDArray[np.int64]
    image_size: int

    def draw(self, indices: NDArray[np.int64]) -> Frames:
        """Frames in chunks of bounded memory."""
        step = max(1, _CHUNK_PIXELS // self.image_size**2)
        parts = [self._draw(indices[start : start + step]) for start in range(0, max(len(indices), 1), step)]
        return Frames(np.concatenate([p.colour for p in parts]), np.concatenate([p.polyp for p in parts]))

    def _draw(self, indices: NDArray[np.int64]) -> Frames:
        return draw_frames(
            self.patient_keys[indices], self.frame_keys[indices], self.findings[indices], self.image_size
        )


@dataclass(frozen=True, eq=False)
class _PhantomPixels:
    script: _Script
    channels: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.script.image_size, self.script.image_size

    def __len__(self) -> int:
        return len(self.script.findings)

    def load(self, indices: NDArray[np.int64]) -> Float[np.ndarray, "b c h w"]:
        return to_channels(self.script.draw(indices).colour, self.channels)


@dataclass(frozen=True, eq=False)
class _PhantomMasks:
    script: _Script

    def load(self, indices: NDArray[np.int64]) -> UInt8[np.ndarray, "b h w"]:
        return self.script.draw(indices).polyp.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _PhantomBoxes:
    script: _Script

    def load(self, indices: NDArray[np.int64]) -> list[Float32[np.ndarray, "boxes 4"]]:
        return [_box(mask) for mask in self.script.draw(indices).polyp]


def load_phantom(image_size: int = 32, channels: int = 1, *, patients: int | None = None, seed: int = 0) -> ImageSet:
    """A set of synthetic patients, 300 unless said otherwise, with 6 to 18 frames each.

    Raises:
        ValueError: when patients is below 1.

    Example:
        >>> phantom = load_phantom(patients=4, seed=1)
        >>> phantom.synthetic, phantom.class_names, phantom.load(np.array([0])).shape
        (True, ('normal', 'polyp', 'inflamed'), (1, 1, 32, 32))
    """
    count = _DEFAULT_PATIENTS if patients is None else patients
    if count < 1:
        raise ValueError(f"patients={patients} must be at least 1")
    keys = join_keys(np.full(count, seed % 2**64, dtype=np.uint64), np.arange(count, dtype=np.uint64))
    draws = KeyedDraws(keys)
    frames = draws.uniform(_FEWEST_FRAMES, _MOST_FRAMES + 1)[:, 0, 0].astype(np.int64)
    patient_of = np.repeat(np.arange(count, dtype=np.int64), frames)
    number = np.arange(len(patient_of)) - np.repeat(np.cumsum(frames) - frames, frames)
    frame_keys = join_keys(keys[patient_of], number.astype(np.uint64))
    findings = _findings(draws.uniform(0.0, 1.0)[:, 0, 0][patient_of], frame_keys)
    script = _Script(keys[patient_of], frame_keys, findings, image_size)
    width = len(str(count - 1))
    return ImageSet(
        name="phantom",
        pixels=_PhantomPixels(script, channels),
        patients=tuple(PatientId(f"phantom-{i:0{width}d}") for i in range(count)),
        patient_of=patient_of,
        class_names=CLASS_NAMES,
        labels=findings,
        public=True,
        synthetic=True,
        masks=_PhantomMasks(script),
        boxes=_PhantomBoxes(script),
    )


def _findings(condition: NDArray[np.float32], frame_keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What each frame shows: the patient's condition in most frames, and nothing in the others."""
    shows = KeyedDraws(join_keys(frame_keys, np.ones_like(frame_keys))).uniform(0.0, 1.0)[:, 0, 0] < 0.8
    diseased = np.where(condition < 0.75, POLYP, INFLAMED)
    return np.where(shows & (condition >= 0.35), diseased, NORMAL).astype(np.int64)


def _box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.empty((0, 4), dtype=np.float32)
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], dtype=np.float32)
