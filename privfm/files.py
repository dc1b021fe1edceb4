"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["sync_folder", "write_atomic"]


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put `content` at `path`, durably and all at once: a crash leaves the old file or the new one.

    Args:
        path: in a folder that exists.
        content: the whole file.
        mode: permission bits; 0o600 for what only its owner may read.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which files a folder holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
