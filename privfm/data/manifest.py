"""`manifest.csv`: a table that says whose each image is, for folders that are laid out in another way.

Columns are path and patient, and optionally hospital, label, mask and boxes. Paths are relative to the manifest.
Boxes are in pixels of the original image, `left top right bottom`, several of them separated by semicolons.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from privfm.data.decoding import IMAGE_SUFFIXES, read_image
from privfm.data.folder import file_entries, stays_inside
from privfm.data.listing import Entry, Listing, hospital_complaint, patient_complaint
from privfm.errors import DataError

__all__ = ["MANIFEST_NAME", "scan_manifest"]

MANIFEST_NAME = "manifest.csv"
_REQUIRED = ("path", "patient")
_COLUMNS = (*_REQUIRED, "hospital", "label", "mask", "boxes")
_MAX_BYTES = 512 * 2**20
_MAX_BOXES = 1000

_Box = tuple[float, float, float, float]


def scan_manifest(manifest: Path) -> Listing:
    """Every image that the manifest lists, with complaints that name its line.

    A manifest that cannot be read as a table has that as its only complaint.
    """
    root = manifest.parent
    try:
        rows = _rows(manifest)
        entries, complaints = _entries(root, manifest, rows)
    except DataError as error:
        return Listing(root, "manifest", (), (str(error),), read_image)
    return Listing(root, "manifest", tuple(entries), tuple(complaints), read_image)


def _rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) for every line below the header."""
    if manifest.stat().st_size > _MAX_BYTES:
        raise DataError(f"{manifest}: larger than {_MAX_BYTES >> 20} MiB; split the data")
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as file:
            return list(_parse(manifest, csv.reader(file, strict=True)))
    except UnicodeDecodeError as error:
        raise DataError(f"{manifest}: not UTF-8 text; save it as CSV in UTF-8") from error
    except OSError as error:
        raise DataError(f"{manifest}: cannot be read; check its permissions") from error


def _parse(manifest: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, dict[str, str]]]:
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(manifest, header)
        for row in reader:
            line = reader.line_num  # type: ignore[attr-defined]
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(f"{manifest}:{line}: {len(row)} fields where the header has {len(header)}")
            yield line, dict(zip(header, (field.strip() for field in row), strict=True))
    except csv.Error as error:
        raise DataError(f"{manifest}:{line + 1}: not valid CSV ({error})") from error


def _check_header(manifest: Path, header: list[str]) -> None:
    missing = [name for name in _REQUIRED if name not in header]
    unknown = [name for name in header if name not in _COLUMNS]
    if unknown:
        raise DataError(f"{manifest}:1: unknown column {unknown[0]!r}; the columns are {', '.join(_COLUMNS)}")
    if missing:
        raise DataError(f"{manifest}:1: column {missing[0]!r} is missing; path and patient are needed")
    if len(set(header)) != len(header):
        raise DataError(f"{manifest}:1: a column appears twice")


def _entries(root: Path, manifest: Path, rows: list[tuple[int, dict[str, str]]]) -> tuple[list[Entry], list[str]]:
    entries: list[Entry] = []
    complaints: list[str] = []
    first_line: dict[Path, int] = {}
    for line, row in rows:
        try:
            path = _inside(root, row["path"], "path")
            if path in first_line:
                raise DataError(f"{row['path']} is already on line {first_line[path]}")
            first_line[path] = line
            entries += _row_entries(root, path, row)
        except DataError as error:
            complaints.append(f"{manifest}:{line}: {error}")
    if rows and any(row.get("hospital") for _, row in rows):
        complaints += [f"{manifest}:{line}: the hospital is blank" for line, row in rows if not row["hospital"]]
    return entries, complaints


def _inside(root: Path, text: str, column: str) -> Path:
    if not text or not text.isprintable():
        raise DataError(f"the {column} is blank or holds control characters")
    if PurePath(text).is_absolute() or not stays_inside(root, root / text):
        raise DataError(f"{column} {text} leads outside {root}; paths are relative to the manifest")
    path = (root / text).resolve()
    if not path.is_file():
        raise DataError(f"{column} {text}: there is no such file")
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(f"{column} {text}: not a png, jpg, jpeg, tif or tiff file")
    return path


def _row_entries(root: Path, path: Path, row: dict[str, str]) -> list[Entry]:
    hospital = row.get("hospital") or None
    complaint = patient_complaint(row["patient"]) or (hospital_complaint(hospital) if hospital else None)
    if complaint:
        raise DataError(complaint)
    mask = _inside(root, row["mask"], "mask") if row.get("mask") else None
    entries = file_entries(path, row["patient"], hospital)
    boxes = _boxes(row.get("boxes", ""), entries[0])
    return [replace(entry, label=row.get("label") or None, mask=mask, boxes=boxes) for entry in entries]


def _boxes(text: str, entry: Entry) -> tuple[_Box, ...]:
    parts = [part for part in text.split(";") if part.strip()]
    if len(parts) > _MAX_BOXES:
        raise DataError(f"more than {_MAX_BOXES} boxes")
    return tuple(_box(part, entry) for part in parts)


def _box(text: str, entry: Entry) -> _Box:
    try:
        left, top, right, bottom = (float(number) for number in text.split())
    except ValueError as error:
        raise DataError(f"box {text.strip()!r} is not `left top right bottom`") from error
    if not (0 <= left < right <= entry.width and 0 <= top < bottom <= entry.height):
        raise DataError(f"box {text.strip()!r} is empty or leaves its image of {entry.width}x{entry.height} pixels")
    return left / entry.width, top / entry.height, right / entry.width, bottom / entry.height
