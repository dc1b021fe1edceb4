"""What a source on disk says that it holds, with every complaint, before pixels are read.

Training refuses at the first complaint; the local check shows them all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from numpy.typing import NDArray

from privfm.data.decoding import quiet_decoders, read_mask
from privfm.data.imageset import ImageSet, index_names
from privfm.data.pixels import Decoder, FilePixels, Frame
from privfm.data.resizing import resize_nearest
from privfm.errors import DataError
from privfm.ids import HospitalId, PatientId

__all__ = ["Entry", "Listing", "hospital_complaint", "patient_complaint", "refuse_odd_name", "visible_files"]

_HOSPITAL = re.compile(r"\w[\w .()-]{0,63}")


@dataclass(frozen=True)
class Entry:
    """One image and what its source says about it.

    Args:
        frame: where it lies.
        patient: identifier, as the source has it.
        width, height: of the image in pixels.
        mode: how its pixels are stored, in the words of the format.
        hospital: None when the source does not say.
        label: class name, None when it has none.
        mask: file of pixel classes.
        boxes: [boxes 4] left, top, right, bottom as fractions of the image's sides.
    """

    frame: Frame
    patient: str
    width: int
    height: int
    mode: str
    hospital: str | None = None
    label: str | None = None
    mask: Path | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class Listing:
    """All entries of a source, all complaints about it, and how its frames are decoded.

    Args:
        path: the folder or file.
        kind: "folder", "manifest" or "dicom".
        entries: in a fixed order.
        complaints: one line each, naming the file.
        decode: reads a frame.
        passed_over: files that are of no kind that is read.
    """

    path: Path
    kind: str
    entries: tuple[Entry, ...]
    complaints: tuple[str, ...]
    decode: Decoder
    passed_over: tuple[Path, ...] = ()

    def without(self, leaves_out: Callable[[str | None, str], bool]) -> Listing:
        """The listing without some patients, by hospital and patient: their files are not decoded."""
        return replace(self, entries=tuple(e for e in self.entries if not leaves_out(e.hospital, e.patient)))

    def to_images(self, image_size: int, channels: int) -> ImageSet:
        """The images, every one of which has been decoded once.

        Raises:
            DataError: the first complaint, or the first image that cannot be read.
        """
        if self.complaints:
            more = (
                f" (and {len(self.complaints) - 1} more, see `privfm data check`)" if len(self.complaints) > 1 else ""
            )
            raise DataError(self.complaints[0] + more)
        if not self.entries:
            raise DataError(f"{self.path}: holds no images; expected hospital/patient/*.png, jpg, tif or DICOM files")
        pixels = FilePixels(tuple(e.frame for e in self.entries), self.decode, image_size, channels)
        with quiet_decoders():
            pixels.read_all()
        return self._assemble(pixels)

    def _assemble(self, pixels: FilePixels) -> ImageSet:
        patients, patient_of = index_names([entry.patient for entry in self.entries])
        named = [entry.hospital for entry in self.entries if entry.hospital is not None]
        hospitals, hospital_of = index_names(named)
        class_names, labels = _labels(self.entries)
        return ImageSet(
            name=str(self.path),
            pixels=pixels,
            patients=tuple(map(PatientId, patients)),
            patient_of=patient_of,
            hospitals=tuple(map(HospitalId, hospitals)),
            hospital_of=hospital_of if hospitals else None,
            class_names=class_names,
            labels=labels,
            masks=_masks(self.entries, pixels.image_size),
            boxes=_boxes(self.entries, pixels.image_size),
        )


@dataclass(frozen=True, eq=False)
class _FileMasks:
    entries: tuple[Entry, ...]
    image_size: int

    def load(self, indices: NDArray[np.int64]) -> UInt8[np.ndarray, "b h w"]:
        masks = np.zeros((len(indices), self.image_size, self.image_size), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            entry = self.entries[index]
            if entry.mask is not None:
                masks[row] = self._resized(entry, entry.mask)
        return masks

    def _resized(self, entry: Entry, path: Path) -> NDArray[np.uint8]:
        mask = read_mask(path)
        if mask.shape != (entry.height, entry.width):
            raise DataError(
                f"{path}: the mask has {mask.shape[1]}x{mask.shape[0]} pixels and its image "
                f"{entry.width}x{entry.height}; make them the same size"
            )
        return resize_nearest(mask, self.image_size, self.image_size)


@dataclass(frozen=True, eq=False)
class _ListedBoxes:
    entries: tuple[Entry, ...]
    image_size: int

    def load(self, indices: NDArray[np.int64]) -> list[Float32[np.ndarray, "boxes 4"]]:
        return [
            np.array(self.entries[index].boxes, dtype=np.float32).reshape(-1, 4) * np.float32(self.image_size)
            for index in indices.tolist()
        ]


def _masks(entries: tuple[Entry, ...], image_size: int) -> _FileMasks | None:
    return _FileMasks(entries, image_size) if any(entry.mask for entry in entries) else None


def _boxes(entries: tuple[Entry, ...], image_size: int) -> _ListedBoxes | None:
    return _ListedBoxes(entries, image_size) if any(entry.boxes for entry in entries) else None


def _labels(entries: tuple[Entry, ...]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    class_names, _ = index_names([entry.label for entry in entries if entry.label is not None])
    if not class_names:
        return (), None
    place: dict[str | None, int] = {None: -1} | {name: index for index, name in enumerate(class_names)}
    return class_names, np.array([place[entry.label] for entry in entries], dtype=np.int64)


def patient_complaint(patient: str) -> str | None:
    """Why this cannot identify a patient, or None."""
    if not patient.strip():
        return "the patient id is blank"
    if len(patient) > 256 or not patient.isprintable():
        return "the patient id is over 256 characters or holds control characters"
    return None


def hospital_complaint(hospital: str) -> str | None:
    """Why this cannot name a hospital (files are named after it), or None.

    Example:
        >>> hospital_complaint("St. Mary (North)")
        >>> hospital_complaint("../elsewhere")
        "hospital '../elsewhere' is not a plain name of at most 64 letters, digits, spaces, dots, dashes or brackets"
    """
    if _HOSPITAL.fullmatch(hospital):
        return None
    return f"hospital {hospital!r} is not a plain name of at most 64 letters, digits, spaces, dots, dashes or brackets"


def refuse_odd_name(path: Path) -> None:
    """Keeps names that would break a message into lines, or a terminal, out of messages.

    Raises:
        DataError: when the path holds control characters or undecodable bytes.
    """
    if not str(path).isprintable():
        raise DataError(f"{str(path)!r}: the name holds control characters or unknown bytes; rename it")


def visible_files(folder: Path) -> Iterator[Path]:
    """Files below a folder in a fixed order, without hidden ones; a link to a folder comes as itself, not followed."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__MACOSX")):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from visible_files(path)
        else:
            yield path
