"""Which images a name on the command line means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from privfm.data.decoding import IMAGE_SUFFIXES, quiet_decoders
from privfm.data.dicom import is_dicom, scan_dicom
from privfm.data.folder import scan_folder
from privfm.data.imageset import ImageSet
from privfm.data.listing import Listing, visible_files
from privfm.data.manifest import MANIFEST_NAME, scan_manifest
from privfm.data.medmnist import load_medmnist
from privfm.data.phantom import load_phantom
from privfm.data.tiles import load_tiles
from privfm.errors import DataError

__all__ = ["load_images", "scan"]


def load_images(
    source: str,
    *,
    image_size: int,
    channels: int = 1,
    unit: str = "patient",
    seed: int = 0,
    patients: int | None = None,
    leaves_out: Callable[[str | None, str], bool] = lambda hospital, patient: False,
) -> ImageSet:
    """The images that a source holds, every one of them readable.

    Args:
        source: "tiles" (built-in photographs), "phantom" (computed endoscopy-like frames), a folder with images by
            hospital and patient, with a manifest.csv or with DICOM files, or an .npz file in MedMNIST's layout.
        image_size: side of the square images in pixels.
        channels: 1 (grey) or 3 (colour).
        unit: "patient", or "image" where every image is another person.
        seed: of the phantom's patients.
        patients: how many patients the phantom shall have; for the phantom alone.
        leaves_out: says, by hospital and patient, whose files of a folder are not to be decoded.

    Raises:
        DataError: in one line that names the file and says what to do.
        ValueError: when a number is out of range.
    """
    if image_size < 8 or channels not in (1, 3) or unit not in ("patient", "image"):
        raise ValueError(
            f"image_size={image_size}, channels={channels}, unit={unit!r}: at least 8, 1 or 3, patient or image"
        )
    if patients is not None and source != "phantom":
        raise DataError(f"{source}: its patients are given; only phantom can be asked for a number of patients")
    if source == "tiles":
        images = load_tiles(image_size, channels)
    elif source == "phantom":
        images = load_phantom(image_size, channels, patients=patients, seed=seed)
    elif Path(source).suffix.lower() == ".npz" and Path(source).is_file():
        return load_medmnist(Path(source), image_size, channels, unit)
    else:
        images = scan(Path(source)).without(leaves_out).to_images(image_size, channels)
    return images.with_image_units() if unit == "image" else images


def scan(path: Path) -> Listing:
    """What a folder or manifest.csv holds, in whichever of the layouts it is.

    Raises:
        DataError: when there is no such folder, it holds no images, or it mixes DICOM with other images.
    """
    if path.name == MANIFEST_NAME and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; use tiles, phantom, a folder of images or an .npz file")
    if (path / MANIFEST_NAME).is_file():
        with quiet_decoders():
            return scan_manifest(path / MANIFEST_NAME)
    try:
        files = list(visible_files(path))
    except OSError as error:
        raise DataError(f"{error.filename}: the folder cannot be read; check its permissions") from error
    pictures = next((file for file in files if file.suffix.lower() in IMAGE_SUFFIXES), None)
    dicom = next((file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES and is_dicom(file)), None)
    if pictures and dicom:
        raise DataError(
            f"{path}: holds DICOM ({dicom.name}) and other images ({pictures.name}); keep them in two folders"
        )
    if not pictures and not dicom:
        raise DataError(f"{path}: holds no images; expected hospital/patient/*.png, jpg, tif or DICOM files")
    with quiet_decoders():
        return scan_dicom(path) if dicom else scan_folder(path)
