"""Self-supervised losses with one value per privacy unit."""

from __future__ import annotations

from privfm.objectives.catalogue import get_objective
from privfm.objectives.contrast import contrast
from privfm.objectives.dino import Dino
from privfm.objectives.mae import MaskedAutoEncoding
from privfm.objectives.protocol import Network, Objective, Reconstructs
from privfm.objectives.siamese import Byol, SimSiam
from privfm.objectives.simclr import SimClr
from privfm.objectives.simmim import SimMim

__all__ = [
    "Byol",
    "Dino",
    "MaskedAutoEncoding",
    "Network",
    "Objective",
    "Reconstructs",
    "SimClr",
    "SimMim",
    "SimSiam",
    "contrast",
    "get_objective",
]
