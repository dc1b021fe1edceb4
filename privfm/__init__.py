"""Hospitals train one self-supervised image backbone together, without showing anyone an image."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
