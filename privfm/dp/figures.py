"""Epsilons as people read them."""

from __future__ import annotations

__all__ = ["figure"]


def figure(value: float, places: int = 3) -> str:
    """`value` with so many decimal places, or as many digits where it is small or huge.

    >>> figure(7.98142), figure(0.0412345), figure(0.0000123), figure(0.0), figure(1.02e13)
    ('7.981', '0.0412', '1.23e-05', '0.000', '1.02e+13')
    """
    return f"{value:.{places}f}" if 0.1 <= value < 1e6 or value == 0 else f"{value:.{places}g}"
