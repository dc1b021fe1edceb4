"""DICOM folders through pydicom: whose each image is, and its pixels as a viewer would show them.

The patient is PatientID. The institution's name is no hospital here: it varies within one hospital and is itself
personal data in some exports. Source: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality), C.11.2 (values of interest).
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray

from privfm.data.decoding import MAX_PAGES, MAX_PIXELS, to_unit_range
from privfm.data.folder import stays_inside
from privfm.data.listing import Entry, Listing, hospital_complaint, patient_complaint, refuse_odd_name, visible_files
from privfm.data.pixels import Frame
from privfm.errors import DataError

__all__ = ["is_dicom", "read_dicom", "scan_dicom"]

_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_HEADER = [
    "PatientID",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsStored",
]
#: What pydicom and its decoders raise on damaged or unsupported files, beside InvalidDicomError.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


def is_dicom(path: Path) -> bool:
    """Whether a file is named or begins like a DICOM file."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def scan_dicom(root: Path) -> Listing:
    """Every DICOM image below root, each frame an image; objects without pixels, as reports, are passed over.

    Where files lie two or more folders deep the first folder is the hospital, unless several such folders hold one
    patient each, when they are the patients' own and no hospital is named.

    Raises:
        DataError: when pydicom is not installed.
    """
    _pydicom()
    entries: list[Entry] = []
    complaints: list[str] = []
    passed_over: list[Path] = []
    for path in visible_files(root):
        if not is_dicom(path):
            passed_over.append(path)
            continue
        try:
            found = _file_entries(root, path)
        except DataError as error:
            complaints.append(str(error))
            continue
        entries += found
        if not found:
            passed_over.append(path)
    entries = _without_patient_folders(entries)
    complaints += _outside_hospitals(entries)
    return Listing(root, "dicom", tuple(entries), tuple(complaints), read_dicom, tuple(passed_over))


def read_dicom(frame: Frame, side: int) -> Float32[np.ndarray, "channels height width"]:
    """One frame as shown: rescaled, windowed, MONOCHROME1 inverted, palettes and YBR turned into red, green and blue.

    Where the file gives no window, values are stretched between their extremes. A blank slice is no error: series end
    in them, and a window can leave nothing of a slice.

    Raises:
        DataError: naming the file, when it cannot be read.
    """
    pydicom = _pydicom()
    from pydicom.errors import InvalidDicomError

    try:
        ds = pydicom.dcmread(frame.path, stop_before_pixels=True)
        stored = pydicom.pixels.pixel_array(frame.path, index=frame.index)
        pixels = _shown(stored, ds, frame.index)
    except (*_DAMAGE, InvalidDicomError) as error:
        raise _undecodable(frame.path, error) from error
    return pixels


def _pydicom() -> ModuleType:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise DataError('reading DICOM needs an extra; pip install "privfm[dicom]"') from error
    return pydicom


def _undecodable(path: Path, error: BaseException) -> DataError:
    if isinstance(error, RuntimeError | NotImplementedError):
        return DataError(
            f"{path}: compressed in a way that pydicom cannot read here; pip install pylibjpeg, or convert it"
        )
    return DataError(f"{path}: not a readable DICOM image; replace it or leave it out")


def _file_entries(root: Path, path: Path) -> list[Entry]:
    pydicom = _pydicom()
    from pydicom.errors import InvalidDicomError

    refuse_odd_name(path)
    if not stays_inside(root, path):
        raise DataError(f"{path}: links to a file outside {root}; copy it into the folder")
    try:
        ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER)
        if "Rows" not in ds:
            return []
        frames = int(ds.get("NumberOfFrames") or 1)
        width, height = int(ds.Columns), int(ds.Rows)
        patient = str(ds.get("PatientID") or "").strip()
        mode = f"{ds.get('PhotometricInterpretation', 'unknown')} {ds.get('BitsStored', '?')} bit"
    except (*_DAMAGE, InvalidDicomError) as error:
        raise _undecodable(path, error) from error
    if not 0 < width * height <= MAX_PIXELS or not 0 < frames <= MAX_PAGES:
        raise DataError(f"{path}: {frames:,} frames of {width}x{height} pixels are more than can be read; leave it out")
    hospital = _hospital(root, path)
    complaint = patient_complaint(patient) or (hospital_complaint(hospital) if hospital else None)
    if complaint:
        raise DataError(f"{path}: {complaint}; give it a PatientID and plain folder names, or leave it out")
    return [Entry(Frame(path, i, frames), patient, width, height, mode, hospital) for i in range(frames)]


def _hospital(root: Path, path: Path) -> str | None:
    folders = path.relative_to(root).parts[:-1]
    return folders[0] if len(folders) >= 2 else None


def _without_patient_folders(entries: list[Entry]) -> list[Entry]:
    patients: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.hospital is not None:
            patients[entry.hospital].add(entry.patient)
    if len(patients) > 1 and all(len(names) == 1 for names in patients.values()):
        return [replace(entry, hospital=None) for entry in entries]
    return entries


def _outside_hospitals(entries: list[Entry]) -> list[str]:
    inside = next((entry for entry in entries if entry.hospital is not None), None)
    outside = dict.fromkeys(entry.frame.path for entry in entries if entry.hospital is None)
    if inside is None:
        return []
    return [f"{path}: lies in no hospital's folder, as others do in {inside.hospital}; move it" for path in outside]


def _shown(stored: NDArray[Any], ds: Any, index: int) -> NDArray[np.float32]:
    from pydicom.pixels.processing import apply_color_lut

    if ds.PhotometricInterpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, ds)
    if stored.ndim == 3:
        depth = 8 * stored.dtype.itemsize if ds.PhotometricInterpretation == "PALETTE COLOR" else int(ds.BitsStored)
        colour: NDArray[np.float32] = np.moveaxis(stored, -1, 0).astype(np.float32) / np.float32(2**depth - 1)
        return colour
    grey = _of_interest(_modality(stored, ds, index), ds, index)
    return (1.0 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey).astype(np.float32)[None]


def _modality(stored: NDArray[Any], ds: Any, index: int) -> NDArray[Any]:
    """Stored values as the modality means them, for example Hounsfield units."""
    from pydicom.pixels.processing import apply_modality_lut

    if ds.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, ds)
    group = _frame_group(ds, index, "PixelValueTransformationSequence")
    slope, intercept = group.get("RescaleSlope"), group.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    rescaled: NDArray[np.float64] = stored.astype(np.float64) * float(slope) + float(intercept)
    return rescaled


def _of_interest(values: NDArray[Any], ds: Any, index: int) -> Float[np.ndarray, "h w"]:
    """Values in [0, 1], by a lookup table, by a window, or between their extremes."""
    from pydicom.pixels.processing import apply_voi

    if ds.get("VOILUTSequence"):
        depth = int(ds.VOILUTSequence[0].LUTDescriptor[2])
        looked_up: NDArray[np.float64] = apply_voi(np.rint(values).astype(np.int64), ds) / (2.0**depth - 1.0)
        return looked_up
    group = _frame_group(ds, index, "FrameVOILUTSequence")
    centre, width = _first(group.get("WindowCenter")), _first(group.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return to_unit_range(values.astype(np.float64))
    return window(values, centre, width, str(group.get("VOILUTFunction") or "LINEAR").upper())


def window(values: NDArray[Any], centre: float, width: float, function: str) -> Float[np.ndarray, "h w"]:
    """Values mapped to [0, 1] by a window.

    Raises:
        ValueError: when the function is none of LINEAR, LINEAR_EXACT and SIGMOID.

    Source: DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3, with the output range from 0 to 1.

    Example:
        >>> window(np.array([[-50, 50, 150]]), 50.0, 100.0, "LINEAR_EXACT").tolist()
        [[0.0, 0.5, 1.0]]
    """
    values = values.astype(np.float64)
    if function == "SIGMOID":
        curve: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width))
        return curve
    if function not in ("LINEAR", "LINEAR_EXACT"):
        raise ValueError(f"function={function} is not a VOI LUT function")
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1.0, 1e-6)
    line: NDArray[np.float64] = np.clip((values - centre) / width + 0.5, 0.0, 1.0)
    return line


def _frame_group(ds: Any, index: int, sequence: str) -> Any:
    """The data set that speaks for this frame: its own functional group, the shared one, or the file's top level."""
    per_frame = ds.get("PerFrameFunctionalGroupsSequence") or []
    groups: Iterable[Any] = [*per_frame[index : index + 1], *(ds.get("SharedFunctionalGroupsSequence") or [])[:1]]
    for group in groups:
        if group.get(sequence):
            return group.get(sequence)[0]
    return ds


def _first(value: Any) -> float | None:
    """The first of a value that may be absent, single or several."""
    if value is None:
        return None
    if isinstance(value, str | float | int):
        return float(value)
    return float(value[0]) if len(value) else None
