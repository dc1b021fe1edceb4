"""What audits of a hospital's own images found, as a page that stays at the hospital."""

from __future__ import annotations

from pathlib import Path

from privfm.files import write_atomic
from privfm.report.audits import read_audits
from privfm.report.rendering import rendered

__all__ = ["write_audit_page"]


def write_audit_page(source: Path, of: str) -> Path:
    """Write a page beside an audit's JSON file, for whoever may read that file, and return its path.

    Args:
        source: the file.
        of: the run or the model that was audited.

    Raises:
        RunError: the file is not what an audit writes.
    """
    path = source.with_suffix(".html")
    page = rendered("audit_page.html.j2", audits=read_audits(source), of=of, source=source.name)
    write_atomic(path, page.encode(), mode=0o600)
    return path
