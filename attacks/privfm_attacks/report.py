"""What audits found, all together, and audit.json."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from privfm import __version__
from privfm.files import write_atomic
from privfm_attacks.verdicts import MUST_HOLD, AuditResult, Verdict

__all__ = ["FILE", "LOCAL", "Report", "keep_report"]

FILE, LOCAL = "audit.json", "hospitals/audit.json"
MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Report:
    """What audits found.

    Args:
        audits: in the order in which they ran.
        notices: what a reader should know of the whole, a line each.
        left_out: what was not done for want of time, a line each.
        lost: whether a file of earlier audits could not be read just now, so that leaks in it are not known.
    """

    audits: tuple[AuditResult, ...]
    notices: tuple[str, ...]
    left_out: tuple[str, ...]
    lost: bool = False

    @property
    def failed(self) -> tuple[str, ...]:
        """Audits that forbid publishing: those that found a leak, and what could not be checked and must hold."""
        found = tuple(
            each.name
            for each in self.audits
            if each.verdict is Verdict.LEAK or (each.name in MUST_HOLD and each.verdict is Verdict.INCONCLUSIVE)
        )
        return (*found, "earlier audits") if self.lost else found

    def beside(self, earlier: Report, order: Sequence[str]) -> Report:
        """This with what was found earlier by audits that were not made again, in the order of their names.

        An earlier result that does not yield to this one's stands, and a notice says so.
        """
        before, mine = {each.name: each for each in earlier.audits}, {each.name for each in self.audits}
        standing = {
            each.name: each for each in self.audits if each.name in before and not before[each.name].yields_to(each)
        }
        new = [each for each in self.audits if each.name not in standing]
        kept = [each for each in earlier.audits if each.name not in mine or each.name in standing]
        told = [_stands(before[name], each) for name, each in standing.items()]
        notices = dict.fromkeys((*self.notices, *told, *_of_others(earlier.notices, mine)))
        left = (*_of_others(self.left_out, standing), *_of_others(earlier.left_out, {each.name for each in new}))
        whole = tuple(sorted([*new, *kept], key=lambda each: order.index(each.name)))
        return Report(whole, tuple(notices), tuple(dict.fromkeys(left)), self.lost or earlier.lost)

    def shareable(self) -> Report:
        """What may leave the hospitals."""
        return replace(self, audits=tuple(each.shareable() for each in self.audits))

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "privfm_version": __version__,
            "notices": list(self.notices),
            "left_out": list(self.left_out),
            "audits": [each.to_json() for each in self.audits],
        }


def keep_report(report: Report, root: Path, order: Sequence[str], run: str | None = None) -> Report:
    """Write what may be shared into a folder and the rest, if there is more, beside hospitals' own files.

    Args:
        root: the folder, of a run or with a model.
        order: names of all audits that there are.
        run: the run's identifier.

    Returns:
        All that is known now: audits that were made earlier, and not again, are still there.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    dated = replace(report, audits=tuple(replace(each.finite(), made=now) for each in report.audits))
    shared, lost = dated.shareable(), False
    if shared != dated:
        local = dated.beside(_earlier(root / LOCAL, order), order)
        write_atomic(root / LOCAL, _as_bytes(local, run), mode=0o600)
        lost = local.lost
    earlier = _earlier(root / FILE, order)
    write_atomic(root / FILE, _as_bytes(shared.beside(earlier, order), run))
    whole = dated.beside(earlier, order)
    return replace(whole, lost=lost or whole.lost)


def _stands(earlier: AuditResult, newer: AuditResult) -> str:
    """A line that begins with the audit's name, by which the next audit of that name takes it away."""
    why = newer.shareable().sentence if not newer.done else f"{newer.verdict}" + ", with --quick" * newer.quick
    return f"{newer.name}: {earlier.verdict}, as found {earlier.made[:10]}, stands; now {why}"


def _of_others(lines: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """Lines that are not about these audits."""
    return tuple(line for line in lines if line.partition(":")[0] not in names)


def _earlier(path: Path, order: Sequence[str]) -> Report:
    """What was kept before. A file that no audit wrote is set aside: it may have told of leaks."""
    if not path.exists():
        return Report((), (), ())
    try:
        return _read(path, order)
    except (OSError, ValueError, RecursionError):
        aside = _set_aside(path)
    told = f"earlier audits could not be read, and may have found leaks: {path.parent.name}/{path.name} is now {aside}"
    return Report((), (told,), (), lost=True)


def _read(path: Path, order: Sequence[str]) -> Report:
    """Return what an audit wrote; ValueError where none did."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError("too large")
    report = replace(_STORED.validate_json(path.read_bytes(), strict=True), lost=False)
    names = [each.name for each in report.audits]
    if (
        len(set(names)) < len(names)
        or not set(names) <= set(order)
        or any(each.finite() != each for each in report.audits)
    ):
        raise ValueError("no audit writes that")
    return report


_STORED = TypeAdapter(Report)


def _set_aside(path: Path) -> str:
    """Give a file a name that is free, beside its own."""
    names = (f"{path.name}.damaged{number or ''}" for number in count())
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    return aside.name


def _as_bytes(report: Report, run: str | None) -> bytes:
    return json.dumps(_printable({"run": run, **report.to_json()}), indent=2, allow_nan=False).encode()


def _printable(value: Any) -> Any:
    """The same, but for names of files that are no text, which a reader would refuse."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_printable(key): _printable(each) for key, each in value.items()}
        case list() | tuple():
            return [_printable(each) for each in value]
    return value
