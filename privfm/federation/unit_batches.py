"""From drawn patients to the tensors that the clipping engine sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from privfm.data import ImageSet
from privfm.data.views import make_unit_views, standardise

__all__ = ["UnitBatch", "UnitSource", "Units"]


@dataclass(frozen=True)
class UnitBatch:
    """Standardised views of some units, with each unit's own generator for what else is random about it.

    Args:
        count: how many of the units were drawn; the rest are blank, so that every batch has the same size.
    """

    views: Float[Tensor, "units views c h w"]
    rngs: list[np.random.Generator]
    count: int

    @classmethod
    def filled_up(
        cls, views: Float[Tensor, "drawn views c h w"], rngs: list[np.random.Generator], size: int
    ) -> UnitBatch:
        """The batch of drawn units, made up to `size` with blank ones: to be done before views are even made."""
        blank = size - len(rngs)
        blanks = [np.random.default_rng(0) for _ in range(blank)]
        return cls(torch.cat([views, views.new_zeros(blank, *views.shape[1:])]), [*rngs, *blanks], len(rngs))

    def __len__(self) -> int:
        return len(self.rngs)


@runtime_checkable
class Units(Protocol):
    """Privacy units by number."""

    def __len__(self) -> int: ...

    def batches(
        self, units: Int64[np.ndarray, " drawn"], generator_of: Callable[[str], np.random.Generator]
    ) -> Iterator[UnitBatch]:
        """Yield the drawn units in micro-batches of whole units.

        Args:
            units: indices of the drawn units.
            generator_of: a fresh generator for a unit, by the unit's name.
        """
        ...


class UnitSource:
    """A hospital's images as privacy units.

    Guarantees: what a unit contributes depends on its own images and its own generator, whoever else is drawn.

    Args:
        images: the hospital's images; its patients are the units.
        images_per_unit: how many of a drawn unit's images are used, with repetition where it has fewer.
        views: augmented views of each.
        micro_batch: units at a time, a public number: a batch of fewer is filled up with blank ones.
        device: where the views are made.
    """

    def __init__(
        self, images: ImageSet, *, images_per_unit: int, views: int, micro_batch: int, device: torch.device
    ) -> None:
        self._images = images
        self._of_unit = images.by_patient()
        self._images_per_unit = images_per_unit
        self._views = views
        self._micro_batch = micro_batch
        self._device = device

    def __len__(self) -> int:
        return len(self._of_unit)

    def batches(
        self, units: Int64[np.ndarray, " drawn"], generator_of: Callable[[str], np.random.Generator]
    ) -> Iterator[UnitBatch]:
        """See `Units`."""
        for start in range(0, len(units), self._micro_batch):
            chosen = units[start : start + self._micro_batch].tolist()
            rngs = [generator_of(self._images.patients[unit]) for unit in chosen]
            picked = np.concatenate([self._pick(unit, rng) for unit, rng in zip(chosen, rngs, strict=True)])
            pixels = torch.from_numpy(self._images.load(picked)).to(self._device)
            grouped = pixels.reshape(len(chosen), self._images_per_unit, *pixels.shape[1:])
            batch = UnitBatch.filled_up(grouped, rngs, self._micro_batch)  # before anything is computed of them
            yield replace(batch, views=standardise(make_unit_views(batch.views, self._views, batch.rngs)))

    def _pick(self, unit: int, rng: np.random.Generator) -> Int64[np.ndarray, " images"]:
        mine, wanted = self._of_unit[unit], self._images_per_unit
        return mine[rng.permutation(len(mine))[np.arange(wanted) % len(mine)]]
