"""Secure aggregation on a sparse graph, for cohorts above a hundred: each hospital's cost grows with its degree.

Source: Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead".
"""

from __future__ import annotations

from privfm.secagg.sparse import client, server
from privfm.secagg.sparse.parameters import check_policy, choose_neighbours, smallest_group
from privfm.secagg.sparse.protocol import run_sparse_round

__all__ = ["check_policy", "choose_neighbours", "client", "run_sparse_round", "server", "smallest_group"]
