"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["sync_folder", "write_atomic", "write_new"]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put `content` at `path`, durably and all at once: a crash leaves the old file or the new one.

    Args:
        path: in a folder that exists.
        content: the whole file.
        mode: permission bits; 0o600 for what only its owner may read.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    _write(path, content, mode, _replace)


def write_new(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Put `content` at `path` as `write_atomic` does, but never in the place of something that is there.

    Guarantees: until it is whole the file has another name and is its owner's alone; of two writers one fails. On file
    systems without hard links, such as a memory stick's, two writers at the same instant could both seem to succeed.

    Raises:
        FileExistsError: something is at `path`; it is as it was.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    _write(path, content, mode, _claim)


def _write(path: Path, content: bytes, mode: int, place: Callable[[Path, Path], None]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        place(Path(name), path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _replace(draft: Path, path: Path) -> None:
    draft.replace(path)


def _claim(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _claim_without_links(draft, path)
    else:
        draft.unlink()


def _claim_without_links(draft: Path, path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    draft.replace(path)


def sync_folder(folder: Path) -> None:
    """Make durable which files a folder holds."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
