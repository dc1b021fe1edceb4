"""A folder whose folders say whose images they hold: hospital/patient/image, or patient/image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from privfm.data.decoding import IMAGE_SUFFIXES, read_header, read_image
from privfm.data.listing import Entry, Listing, hospital_complaint, patient_complaint, refuse_odd_name, visible_files
from privfm.data.pixels import Frame
from privfm.errors import DataError

__all__ = ["file_entries", "scan_folder", "stays_inside"]


def scan_folder(root: Path) -> Listing:
    """Every png, jpg, jpeg, tif and tiff below root, each page an image; the layout is read from the folders' depth.

    Two levels of folders are hospital and patient, one level is the patient alone. Hidden files and other kinds of
    files are passed over.
    """
    everything = list(visible_files(root))
    files = [path for path in everything if path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir()]
    levels = max((_depth(root, path) for path in files if _depth(root, path) <= 2), default=0)
    entries, complaints = [], list(_empty_folders(root, files, levels))
    for path in files:
        try:
            entries += _entries(root, path, levels)
        except DataError as error:
            complaints.append(str(error))
    passed_over = tuple(sorted(set(everything) - set(files)))
    return Listing(root, "folder", tuple(entries), tuple(complaints), read_image, passed_over)


def file_entries(path: Path, patient: str, hospital: str | None) -> list[Entry]:
    """An entry for each page of an image file.

    Raises:
        DataError: naming the file, when its header cannot be read.
    """
    header = read_header(path)
    return [
        Entry(Frame(path, page, header.pages), patient, header.width, header.height, header.mode, hospital)
        for page in range(header.pages)
    ]


def stays_inside(root: Path, path: Path) -> bool:
    """Whether a path, its links followed, lies below root."""
    return path.resolve().is_relative_to(root.resolve())


def _depth(root: Path, path: Path) -> int:
    return len(path.relative_to(root).parts) - 1


def _entries(root: Path, path: Path, levels: int) -> list[Entry]:
    folders = path.relative_to(root).parts[:-1]
    refuse_odd_name(path)
    if path.is_dir():
        raise DataError(f"{path}: a link to a folder, which is not followed; put the images themselves there")
    if not stays_inside(root, path):
        raise DataError(f"{path}: links to a file outside {root}; copy the image into the folder")
    if not folders:
        raise DataError(f"{path}: lies in no patient's folder; expected hospital/patient/image or patient/image")
    if len(folders) != levels:
        layout = "hospital/patient/image" if levels == 2 else "patient/image"
        raise DataError(
            f"{path}: lies {len(folders)} folders deep where {layout} is expected; move it or use a manifest.csv"
        )
    hospital = folders[0] if levels == 2 else None
    complaint = patient_complaint(folders[-1]) or (hospital_complaint(hospital) if hospital else None)
    if complaint:
        raise DataError(f"{path}: {complaint}; rename the folder")
    return file_entries(path, folders[-1], hospital)


def _empty_folders(root: Path, files: list[Path], levels: int) -> Iterator[str]:
    """Complaints about hospitals and patients without an image."""
    filled = {parent for path in files for parent in path.parents}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith((".", "__MACOSX")) or not folder.is_dir() or folder.is_symlink():
            continue
        if folder not in filled:
            yield f"{folder}: {'the hospital' if levels == 2 else 'the folder'} has no images; add some or remove it"
        elif levels == 2:
            for patient in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
                if patient not in filled and not patient.is_symlink():
                    yield f"{patient}: the patient has no images; add some or remove the folder"
