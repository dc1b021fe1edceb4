"""Fixed positions for tokens on a grid."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["sincos_positions"]


def sincos_positions(rows: int, columns: int, width: int) -> Float[Tensor, "tokens width"]:
    """Two-dimensional sine-cosine positions, row by row: half of the width speaks of the row, half of the column.

    A width that is no multiple of four is filled up with zeros.

    Source: He et al. 2022, "Masked autoencoders are scalable vision learners", after Vaswani et al. 2017.

    >>> sincos_positions(2, 3, 8).shape
    torch.Size([6, 8])
    """
    quarter = width // 4
    if quarter < 1:
        raise ValueError(f"width={width} must be at least 4")
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    angles = [axis.reshape(-1, 1) * frequencies for axis in (row, column)]
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.nn.functional.pad(waves, (0, width - 4 * quarter)).float()
