"""Is a patient one unit, whatever their number of images, and apart from all others? `UnitSource` on made-up images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float

from privfm.data import ImageSet
from privfm.data.pixels import ArrayPixels
from privfm.federation.unit_batches import UnitBatch, UnitSource
from privfm.ids import PatientId
from privfm.plan import Plan
from privfm_attacks.verdicts import Finding

__all__ = ["units_as_loaded"]

IMAGES_OF = (1, 2, 9, 3, 1, 4, 5)
"""Images of each made-up patient."""

MOVED, MICRO_BATCH = 2, 3


def units_as_loaded(plan: Plan) -> Iterator[Finding]:
    """What is computed of patients when one's images change, when one is not drawn, and how many rows each has."""
    everybody = list(range(len(IMAGES_OF)))
    others = [unit for unit in everybody if unit != MOVED]
    before, sizes = _views(plan, _pixels(plan, moved=False), everybody)
    moved, _ = _views(plan, _pixels(plan, moved=True), everybody)
    fewer, _ = _views(plan, _pixels(plan, moved=False), others)
    frames = plan.privacy.images_per_unit * plan.privacy.views
    odd = [len(rows) for rows in before if rows.shape[0] != frames]
    counted = len(before) == len(everybody) and not odd and set(sizes) == {MICRO_BATCH}
    yield Finding("one row a unit", counted, f"{len(before)} rows of {len(everybody)} units, {frames} views in each")
    if not counted:
        return
    off = sum(not np.array_equal(moved[unit], before[unit]) for unit in others)
    yield Finding("views apart, one moved", off == 0, f"views of {off} others change with one patient's images")
    off = sum(not np.array_equal(left, before[unit]) for left, unit in zip(fewer, others, strict=True))
    yield Finding("views apart, one not drawn", off == 0, f"views of {off} others change when one is not drawn")
    same = np.array_equal(moved[MOVED], before[MOVED])
    yield Finding("views of its own", not same, "whose images change, has other views" if not same else "none change")


def _pixels(plan: Plan, *, moved: bool) -> Float[np.ndarray, "images c h w"]:
    size, rng = plan.data.image_size, np.random.default_rng(12)
    pixels = rng.random((sum(IMAGES_OF), plan.data.channels, size, size), dtype=np.float32)
    if moved:
        of_whom = np.repeat(np.arange(len(IMAGES_OF)), IMAGES_OF)
        pixels[of_whom == MOVED] = 1 - pixels[of_whom == MOVED] ** 2
    return pixels


def _views(
    plan: Plan, pixels: Float[np.ndarray, "images c h w"], drawn: Sequence[int]
) -> tuple[list[Float[np.ndarray, "views c h w"]], list[int]]:
    """Each row that would be clipped, and how large the batches were filled up to."""
    names = tuple(PatientId(f"patient {unit}") for unit in range(len(IMAGES_OF)))
    of_whom = np.repeat(np.arange(len(IMAGES_OF)), IMAGES_OF).astype(np.int64)
    source = UnitSource(
        ImageSet("made up", ArrayPixels(pixels), names, of_whom),
        images_per_unit=plan.privacy.images_per_unit,
        views=plan.privacy.views,
        micro_batch=MICRO_BATCH,
        device=torch.device("cpu"),
    )
    batches = list(source.batches(np.array(drawn, dtype=np.int64), _generator))
    return [row for batch in batches for row in _rows(batch)], [len(batch) for batch in batches]


def _rows(batch: UnitBatch) -> list[Float[np.ndarray, "views c h w"]]:
    return list(batch.views[: batch.count].numpy())


def _generator(name: str) -> np.random.Generator:
    """Fresh for each, by its name."""
    return np.random.default_rng(list(name.encode()))
