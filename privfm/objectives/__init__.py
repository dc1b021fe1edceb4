"""Self-supervised losses with one value per privacy unit."""

from __future__ import annotations

from privfm.objectives.catalogue import get_objective
from privfm.objectives.contrast import contrast
from privfm.objectives.mae import MaskedAutoEncoding
from privfm.objectives.protocol import Network, Objective, Reconstructs

__all__ = ["MaskedAutoEncoding", "Network", "Objective", "Reconstructs", "contrast", "get_objective"]
