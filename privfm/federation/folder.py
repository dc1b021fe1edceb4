"""Which folders are runs, told without loading anything."""

from __future__ import annotations

from pathlib import Path

__all__ = ["is_run"]


def is_run(root: Path) -> bool:
    """Whether a run was laid out in a folder, also if not all of it is still there."""
    return any((root / name).is_file() for name in ("run.json", "roster.json", "start.safetensors"))
