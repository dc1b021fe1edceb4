"""Numbers as people write them."""

from __future__ import annotations

__all__ = ["short", "size"]


def size(count: int) -> str:
    """Return a number of bytes in words, in powers of ten.

    Example:
        >>> size(999), size(2_412_000)
        ('999 B', '2.4 MB')
    """
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"


def short(value: float) -> str:
    """Return a number as people write it, in one piece.

    Example:
        >>> short(0.5), short(1e-05) == "1e\N{NON-BREAKING HYPHEN}5"
        ('0.5', True)
    """
    return f"{value:.4g}".replace("e-0", "e-").replace("-", "\N{NON-BREAKING HYPHEN}")
