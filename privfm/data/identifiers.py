"""Whether patient identifiers look like persons: one name a study, or one name for many, voids the guarantee's unit."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

__all__ = ["identifier_warnings"]

_UID = re.compile(r"\d+(\.\d+){4,}")
_TIMESTAMP = re.compile(r"(19|20)\d{6}[-_T]?\d{4,6}")
_VISIT = re.compile(r"(?P<stem>.*\d.*?)[-_. ]+(study|visit|exam|scan|v|s)?\d{1,3}", re.IGNORECASE)
_PLACEHOLDERS = frozenset(
    {
        "anon",
        "anonymous",
        "anonymized",
        "anonymised",
        "na",
        "n/a",
        "nan",
        "none",
        "null",
        "no name",
        "patient",
        "subject",
    }
    | {"test", "unknown", "unnamed", "x", "xxx", "0", "00", "000", "0000", "-", "?"}
)
_FEW_PATIENTS = 10


def identifier_warnings(images_of: Mapping[str, int]) -> tuple[str, ...]:
    """What makes these identifiers doubtful as persons, one line each; the counts are images.

    Example:
        >>> identifier_warnings({"unknown": 5, "p1": 4})
        ("patient 'unknown' (5 images) is a placeholder: images of several persons may be counted as one",)
    """
    checks = (_placeholders, _per_study, _visits, _per_image, _pooled)
    return tuple(warning for check in checks for warning in check(images_of))


def _placeholders(images_of: Mapping[str, int]) -> Iterator[str]:
    for name, count in sorted(images_of.items()):
        if name.strip().lower() in _PLACEHOLDERS:
            yield (
                f"patient {name!r} ({count} images) is a placeholder: images of several persons may be counted as one"
            )


def _per_study(images_of: Mapping[str, int]) -> Iterator[str]:
    for pattern, kind in ((_UID, "DICOM UIDs"), (_TIMESTAMP, "times")):
        alike = sorted(name for name in images_of if pattern.fullmatch(name))
        if alike:
            yield (
                f"{len(alike)} patient ids look like {kind}, as studies have (for example {alike[0]}): "
                "a person with two studies would be protected for one only"
            )


def _visits(images_of: Mapping[str, int]) -> Iterator[str]:
    """Ids as P001_1, P001_2: the same stem with a number behind it."""
    stems = Counter(match["stem"] for name in images_of if (match := _VISIT.fullmatch(name)))
    repeated = {stem: count for stem, count in stems.items() if count > 1}
    if len(repeated) >= 2 and 2 * sum(repeated.values()) >= len(images_of):
        stem = min(repeated)
        yield (
            f"{sum(repeated.values())} patient ids differ in a last number only (for example {repeated[stem]} begin "
            f"with {stem}): these may be visits of one person"
        )


def _per_image(images_of: Mapping[str, int]) -> Iterator[str]:
    counts = np.array(list(images_of.values()))
    if len(counts) >= _FEW_PATIENTS and (counts == 1).mean() > 0.9:
        yield (
            f"{int((counts == 1).sum())} of {len(counts)} patients have a single image: ids may be of images or "
            "studies; if every image is another person, say so with `--unit image`"
        )


def _pooled(images_of: Mapping[str, int]) -> Iterator[str]:
    total = sum(images_of.values())
    for name, count in sorted(images_of.items()):
        if len(images_of) >= _FEW_PATIENTS and 2 * count > total:
            yield f"patient {name} has {count} of all {total} images: several persons may share this id"
