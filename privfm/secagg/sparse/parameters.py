"""How many neighbours, and how many of them must answer, so that a round fails or leaks with probability 2^-40.

Each hospital draws k of the other n - 1 by itself. Among them the corrupt and the absent are hypergeometric, and a
union bound over the n hospitals makes it one statement about the round.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, log2

from privfm.errors import ProtocolError
from privfm.secagg.roster import COORDINATOR
from privfm.secagg.spec import ClientPolicy, Neighbours

__all__ = ["LOG2_FAILURE", "check_policy", "choose_neighbours", "log2_tail", "smallest_group"]

LOG2_FAILURE = -40


def log2_tail(others: int, marked: int, drawn: int, at_least: int) -> float:
    """log2 of the chance that `drawn` of `others`, without replacement, hold `at_least` of the `marked`. Exact sums.

    >>> log2_tail(4, 2, 1, 1)
    -1.0
    """
    hits = range(max(at_least, drawn - (others - marked), 0), min(marked, drawn) + 1)
    ways = sum(comb(marked, hit) * comb(others - marked, drawn - hit) for hit in hits)
    return log2(ways) - log2(comb(others, drawn)) if ways else float("-inf")


@lru_cache(maxsize=1024)
def most_in_any_neighbourhood(cohort: int, marked: int, degree: int) -> int:
    """The number of marked hospitals that no neighbourhood exceeds, but with probability 2^-40."""
    most = 0
    while log2(cohort) + log2_tail(cohort - 1, marked, degree, most + 1) > LOG2_FAILURE:
        most += 1
    return most


def choose_neighbours(cohort: int, *, max_corrupt: int, max_dropped: int) -> Neighbours:
    """The sparsest graph that withstands so many corrupt hospitals and goes on after so many drop-outs.

    With c the most corrupt and d the most absent in any neighbourhood, it needs a t with `2t > k + c`, so that nobody's
    two seeds can both be recovered, and `t <= k - d`, so that one of them always can. The largest such t is taken.

    Raises:
        ValueError: no graph does; the complete one may.

    >>> choose_neighbours(1000, max_corrupt=100, max_dropped=50)
    Neighbours(degree=83, threshold=59)
    """
    for degree in range(3, cohort):
        corrupt = most_in_any_neighbourhood(cohort, max_corrupt, degree)
        threshold = degree - most_in_any_neighbourhood(cohort, max_dropped, degree)
        if 2 * threshold > degree + corrupt and threshold > corrupt:
            return Neighbours(degree, threshold)
    raise ValueError(
        f"cohort={cohort}, max_corrupt={max_corrupt}, max_dropped={max_dropped}: too many for a sparse graph"
    )


def smallest_group(cohort: int, neighbours: Neighbours, max_corrupt: int) -> int:
    """How many honest hospitals every sum that comes out holds at least, but with probability 2^-40."""
    return neighbours.threshold - most_in_any_neighbourhood(cohort, max_corrupt, neighbours.degree) + 1


def check_policy(policy: ClientPolicy, cohort: int, neighbours: Neighbours) -> None:
    """Refuse a graph that does not protect a hospital under its own policy.

    Raises:
        ProtocolError: naming the rule.
    """
    corrupt = most_in_any_neighbourhood(cohort, policy.max_corrupt, neighbours.degree)
    if 2 * neighbours.threshold <= neighbours.degree + corrupt:
        raise ProtocolError(
            f"refused: {neighbours.threshold} of {neighbours.degree} neighbours does not withstand "
            f"max_corrupt={policy.max_corrupt} of {cohort}; agree on a denser graph",
            (COORDINATOR,),
        )
    if cohort < policy.min_cohort:
        raise ProtocolError(f"refused: cohort of {cohort} is below {policy.min_cohort}", (COORDINATOR,))
