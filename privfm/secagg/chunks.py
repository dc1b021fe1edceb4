"""Long vectors in pieces that stay in cache, spread over threads.

The ciphers, hashes and array operations of this package release the interpreter lock, so plain threads add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

__all__ = ["CHUNK", "pieces", "spread"]

CHUNK = 2**18  # 32-bit words: with shorter steps, threads wait for the interpreter lock longer than a cache saves


def spread(length: int, threads: int, work: Callable[[int, int], None], *, unit: int = CHUNK) -> None:
    """Call `work(start, stop)` on ranges that cover `length`, each starting at a multiple of `unit`.

    >>> spread(10, 1, lambda start, stop: print(start, stop))
    0 10
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: need at least 1")
    units = -(-length // unit)
    bounds = [min(length, units * part // threads * unit) for part in range(threads + 1)]
    ranges = [(start, stop) for start, stop in pairwise(bounds) if start < stop]
    if len(ranges) == 1:
        work(*ranges[0])
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, start, stop) for start, stop in ranges]:
            done.result()


def pieces(start: int, stop: int) -> Iterator[slice]:
    """The range in order, as slices of at most CHUNK entries."""
    for at in range(start, stop, CHUNK):
        yield slice(at, min(stop, at + CHUNK))
