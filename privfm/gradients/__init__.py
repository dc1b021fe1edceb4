"""What each unit's gradient is made of, from one backward pass; private or not is decided elsewhere."""

from __future__ import annotations

from privfm.gradients.one_pass import collected_shares, unit_shares
from privfm.gradients.shares import Factors, Rows, Share

__all__ = ["Factors", "Rows", "Share", "collected_shares", "unit_shares"]
