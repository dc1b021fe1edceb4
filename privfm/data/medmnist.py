"""MedMNIST's files: one .npz with train, val and test images, and no word about patients.

Source: Yang et al. 2023, "MedMNIST v2", Scientific Data 10:41.
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from privfm.data.imageset import ImageSet
from privfm.data.pixels import ArrayPixels, ResizedPixels
from privfm.errors import DataError
from privfm.ids import PatientId

__all__ = ["load_medmnist"]

_SPLITS = ("train", "val", "test")
_MEMBERS = frozenset(f"{split}_{part}.npy" for split in _SPLITS for part in ("images", "labels"))
_MAX_BYTES = 8 * 2**30
#: What zipfile and numpy's header parser raise on damaged files.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    SyntaxError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


def load_medmnist(path: Path, image_size: int, channels: int = 1, unit: str = "patient") -> ImageSet:
    """The images of all three splits, each as a patient of its own; the test split is marked as official.

    Several labels an image (as ChestMNIST has) count as none.

    Raises:
        DataError: when the unit is the patient, whom these files do not name, or when the file is damaged, larger than
            8 GiB unpacked, or laid out in another way.
    """
    if unit != "image":
        raise DataError(
            f"{path}: MedMNIST files do not say which images are of one patient; pass `--unit image` where every image "
            "is another person, else use a folder or a manifest.csv"
        )
    arrays = _read(path)
    splits = [split for split in _SPLITS if f"{split}_images" in arrays]
    images = _joined_images(path, [arrays[f"{split}_images"] for split in splits])
    counts = [len(arrays[f"{split}_images"]) for split in splits]
    class_names, labels = _joined_labels(path, arrays, splits, counts)
    tested = np.repeat([split == "test" for split in splits], counts)
    return ImageSet(
        name=str(path),
        pixels=ResizedPixels(ArrayPixels(images), image_size, channels),
        patients=tuple(PatientId(f"{s}-{i}") for s, n in zip(splits, counts, strict=True) for i in range(n)),
        patient_of=np.arange(len(images), dtype=np.int64),
        class_names=class_names,
        labels=labels,
        official_test=tested if tested.any() else None,
    )


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive)
            return {name.removesuffix(".npy"): _read_member(path, archive, name) for name in archive.namelist()}
    except _DAMAGE as error:
        raise DataError(f"{path}: not a readable .npz file in MedMNIST's layout; download it again") from error


def _check_members(path: Path, archive: zipfile.ZipFile) -> None:
    names = archive.namelist()
    unknown = sorted(set(names) - _MEMBERS)
    if unknown or len(set(names)) != len(names) or "train_images.npy" not in names:
        found = f"found {unknown[0].removesuffix('.npy')}" if unknown else "train_images is missing or repeated"
        raise DataError(f"{path}: MedMNIST's layout has train_, val_ and test_ with images and labels; {found}")
    if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
        raise DataError(f"{path}: unpacks to more than {_MAX_BYTES >> 30} GiB; use a smaller edition of the data")


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    """One array, whose header must not promise more than the member holds: memory is taken on the header's word."""
    with archive.open(name) as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(member)
    if dtype.hasobject or dtype.kind not in "buif":
        raise DataError(f"{path}: {name} holds {dtype}, not numbers")
    size = archive.getinfo(name).file_size
    if min(shape, default=1) < 0 or int(np.prod(shape, dtype=object)) * dtype.itemsize > size:
        raise DataError(f"{path}: {name} promises more values than it holds; download it again")
    with archive.open(name) as member:
        array: NDArray[np.generic] = npy.read_array(member, allow_pickle=False)
    return array


def _joined_images(path: Path, parts: list[NDArray[np.generic]]) -> NDArray[np.uint8]:
    """[n channels height width] from MedMNIST's [n height width] or [n height width 3]."""
    for part in parts:
        if part.dtype != np.uint8 or part.ndim not in (3, 4) or (part.ndim == 4 and part.shape[-1] != 3):
            raise DataError(
                f"{path}: images have shape {part.shape} of {part.dtype}; expected [n, height, width] or "
                "[n, height, width, 3] of uint8 (volumes are not supported)"
            )
    if len({part.shape[1:] for part in parts}) != 1 or not len(parts[0]) or 0 in parts[0].shape:
        raise DataError(f"{path}: the splits hold no images or images of different sizes")
    images = np.concatenate(parts).astype(np.uint8)
    return images[:, None] if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(images, -1, 1))


def _joined_labels(
    path: Path, arrays: Mapping[str, NDArray[np.generic]], splits: list[str], counts: list[int]
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    present = [arrays[f"{split}_labels"] for split in splits if f"{split}_labels" in arrays]
    if not present or any(part.ndim == 2 and part.shape[1] > 1 for part in present):
        return (), None
    if [len(part) for part in present] != counts or any(part.size != len(part) for part in present):
        raise DataError(f"{path}: labels and images differ in number")
    labels = np.concatenate([part.reshape(-1) for part in present])
    if labels.dtype.kind not in "ui" or labels.min() < 0 or labels.max() >= len(labels):
        raise DataError(f"{path}: labels must be whole numbers from 0")
    return tuple(str(label) for label in range(int(labels.max()) + 1)), labels.astype(np.int64)
