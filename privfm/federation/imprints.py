"""Signs in a model's weights that it was made to lay images open rather than to learn from them.

A layer whose rows all measure one thing, each against a threshold of its own, sorts images into bins; the difference
of two bins' gradients is then one image. Such a layer is told by its rows: they are multiples of each other.

Source: Fowl et al. 2022, "Robbing the Fed: directly obtaining private data in federated learning with modified models"
(arXiv 2110.13057), section 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

__all__ = ["imprints", "is_imprint", "layer_of"]

TOLERANCE = 1e-6
"""One minus the cosine of rows that count as multiples of each other; rounding leaves a tenth of that."""

SHORTEST, SHORTEST_FIRST = 64, 4
"""Numbers in a row, of any layer and of the first, below which rows are parallel by chance.

The first step from zero of an adapter's matrix is a mean of vectors of signs, and there are few of those of 16 numbers.
"""

BY_CHANCE = 0.01
"""Share of a first layer's rows, which may be short, below which some are parallel by chance."""

FEW = 8
"""A first layer that has less than one in so many of the directions that it could have is degenerate."""

BESIDE = 4
"""Places in a sorted order between which parallel rows are looked for; others may lie between two by chance."""

NEAR = 1e-4
"""How far parallel rows can be apart along a direction by rounding; numbers along it are about 1 in size."""


def imprints(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return what is suspicious about a network's weights, a line for each layer; nothing about ordinary ones.

    Args:
        state: a state dict; layers in their order, the backbone's under `backbone.` where there is more.

    >>> imprints({"first.weight": torch.eye(4)})
    ()
    >>> imprints({"first.weight": torch.arange(1.0, 6.0)[:, None] * torch.ones(4), "first.bias": torch.arange(5.0)})
    ('first: 5 of 5 rows are multiples of others, with 5 different biases',)
    """
    return tuple(_suspicions(state))


_COUNTS = r"[0-9]{1,9} of [0-9]{1,9}"
_SAID = rf"({_COUNTS} rows are multiples of others(, with [0-9]{{1,9}} different biases)?|it sees {_COUNTS} directions)"
_LINE = re.compile(rf"[A-Za-z0-9_.]{{1,200}}: (holds values that are not finite|{_SAID}(; {_SAID})?)")


def is_imprint(line: object) -> bool:
    """Whether `imprints` could have written this, and so nothing else is in it than a layer's name and counts.

    >>> all(is_imprint(line) for line in imprints({"first.weight": torch.ones(5, 4)}))
    True
    >>> is_imprint("first: of Jane Doe")
    False
    """
    return isinstance(line, str) and _LINE.fullmatch(line) is not None


def layer_of(line: str) -> str:
    """Return which layer a line is about."""
    return line.partition(":")[0]


def _suspicions(state: Mapping[str, Tensor]) -> Iterator[str]:
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            yield f"{key}: holds values that are not finite"
    matrices = {key: _rows(value) for key, value in state.items() if key.endswith(".weight") and value.dim() >= 2}
    first = next((key for key in matrices if key.startswith("backbone.")), next(iter(matrices), None))
    for key, rows in matrices.items():
        if len(rows) < 2 or rows.shape[1] < (SHORTEST_FIRST if key == first else SHORTEST):
            continue
        layer, parallel = key.removesuffix(".weight"), _parallel(rows)
        least = max(2, math.ceil(BY_CHANCE * len(rows))) if key == first else 2
        said = [*_multiples(parallel, state.get(f"{layer}.bias"), least)]
        said += [*_degenerate(rows)] if key == first else []
        if said:
            yield f"{layer}: {'; '.join(said)}"


def _rows(weight: Tensor) -> Float[Tensor, "rows numbers"]:
    return torch.nan_to_num(weight.detach().float().cpu()).flatten(1)


def _multiples(parallel: Tensor, bias: Tensor | None, least: int) -> Iterator[str]:
    count, rows = int(parallel.sum()), len(parallel)
    if count < least:
        return
    if bias is not None and len(bias) == rows:
        thresholds = len(set(bias[parallel.to(bias.device)].tolist()))
        yield f"{count} of {rows} rows are multiples of others, with {thresholds} different biases"
    else:
        yield f"{count} of {rows} rows are multiples of others"


def _parallel(rows: Float[Tensor, "rows numbers"]) -> Tensor:
    """[rows] whether another row is a multiple of it; rows of zeros are nobody's.

    Parallel rows lie beside each other when sorted by how long they are along any one direction.
    """
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=1e-38)  # so that no length overflows
    lengths = torch.linalg.vector_norm(rows, dim=1)
    along = (rows @ torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0))).abs() / lengths
    order, found = along.argsort(), torch.zeros(len(rows)).bool()
    for apart in range(1, min(BESIDE, len(rows) - 1) + 1):
        one, two = order[:-apart], order[apart:]
        near = along[two] - along[one] < NEAR
        one, two = one[near], two[near]
        alike = functional.cosine_similarity(rows[one].double(), rows[two].double()).abs() > 1 - TOLERANCE
        found[one[alike]] = found[two[alike]] = True
    return torch.logical_and(found, lengths > 0)


def _degenerate(rows: Float[Tensor, "rows numbers"]) -> Iterator[str]:
    strengths = torch.linalg.svdvals(rows.double())
    directions = int((strengths > TOLERANCE * strengths.max().clamp(min=1e-300)).sum())
    if directions * FEW < min(rows.shape) or not directions:
        yield f"it sees {directions} of {min(rows.shape)} directions"
