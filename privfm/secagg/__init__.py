"""Secure aggregation: the coordinator of a round learns the sum of the hospitals' vectors and nothing else of them.

Pure and sans-I/O: bytes in, bytes out, and whatever is random is an argument.
"""

from __future__ import annotations

from privfm.secagg.identity import Identity, fingerprint
from privfm.secagg.roster import COORDINATOR, Member, Roster, check_successor, roster_diff
from privfm.secagg.spec import (
    ClientPolicy,
    LedgerMark,
    RoundSpec,
    VectorSpec,
    largest_max_corrupt,
    smallest_threshold,
)

__all__ = [
    "COORDINATOR",
    "ClientPolicy",
    "Identity",
    "LedgerMark",
    "Member",
    "Roster",
    "RoundSpec",
    "VectorSpec",
    "check_successor",
    "fingerprint",
    "largest_max_corrupt",
    "roster_diff",
    "smallest_threshold",
]
