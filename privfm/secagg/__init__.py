"""Secure aggregation: the coordinator of a round learns the sum of the hospitals' vectors and nothing else of them.

Pure and sans-I/O: bytes in, bytes out, and whatever is random is an argument.
"""

from __future__ import annotations

from privfm.secagg import client, server, sparse
from privfm.secagg.driver import Client
from privfm.secagg.identity import Identity, fingerprint
from privfm.secagg.protocol import Party, run_round
from privfm.secagg.quantisation import dequantise, quantise
from privfm.secagg.roster import COORDINATOR, Member, Roster, check_successor, roster_diff
from privfm.secagg.spec import (
    ClientPolicy,
    LedgerMark,
    Neighbours,
    RoundSpec,
    VectorSpec,
    largest_max_corrupt,
    smallest_threshold,
)
from privfm.secagg.stages import Stage, some_of

__all__ = [
    "COORDINATOR",
    "Client",
    "ClientPolicy",
    "Identity",
    "LedgerMark",
    "Member",
    "Neighbours",
    "Party",
    "Roster",
    "RoundSpec",
    "Stage",
    "VectorSpec",
    "check_successor",
    "client",
    "dequantise",
    "fingerprint",
    "largest_max_corrupt",
    "quantise",
    "roster_diff",
    "run_round",
    "server",
    "smallest_threshold",
    "some_of",
    "sparse",
]
