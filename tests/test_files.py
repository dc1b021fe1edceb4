"""Files that are whole or not there, and never readable by others for a moment."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from privfm.files import write_atomic, write_new

WRITERS = [write_atomic, write_new]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_whatever_the_mask(write: Callable[..., None], mode: int, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(tmp_path / "a", b"text", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"text"
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_being_written_is_never_open_to_others(
    write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watch(real: Callable[..., None]) -> Callable[..., None]:
        def step(*arguments: object) -> None:
            seen.extend(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())
            real(*arguments)
            seen.extend(path.stat().st_mode & 0o077 for path in tmp_path.iterdir())

        return step

    for name in ("fchmod", "fsync"):
        monkeypatch.setattr(os, name, watch(getattr(os, name)))
    before = os.umask(0)
    try:
        write(tmp_path / "a", b"secret", mode=0o600)
    finally:
        os.umask(before)
    assert len(seen) >= 4
    assert set(seen) == {0}


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_takes_the_place_of_another(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", _refuse)
    write_new(tmp_path / "a", b"first")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("a", "dangling"):
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "dangling"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in WRITERS:
        with pytest.raises(OSError, match="No space"):
            write(tmp_path / "a", b"text")
    assert list(tmp_path.iterdir()) == []


def _refuse(_path: Path, _target: Path) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")
