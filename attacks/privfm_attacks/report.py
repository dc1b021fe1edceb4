"""What audits found, all together, and audit.json."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from privfm import __version__
from privfm.files import write_atomic
from privfm_attacks.verdicts import AuditResult, Verdict

__all__ = ["FILE", "LOCAL", "Report", "keep_report"]

FILE, LOCAL = "audit.json", "hospitals/audit.json"
MOST_BYTES = 16 << 20

_MUST_HOLD = ("mechanism", "ledgers")


@dataclass(frozen=True)
class Report:
    """What audits found.

    Args:
        audits: in the order in which they ran.
        notices: what a reader should know of the whole, a line each.
        left_out: what was not done for want of time, a line each.
    """

    audits: tuple[AuditResult, ...]
    notices: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def failed(self) -> tuple[str, ...]:
        """Audits that forbid publishing: those that found a leak, and what could not be checked and must hold."""
        return tuple(
            each.name
            for each in self.audits
            if each.verdict is Verdict.LEAK or (each.name in _MUST_HOLD and each.verdict is Verdict.INCONCLUSIVE)
        )

    def beside(self, earlier: Report, order: Sequence[str]) -> Report:
        """This with what was found earlier by audits that were not made again, in the order of their names."""
        mine = {each.name for each in self.audits}
        kept = [each for each in earlier.audits if each.name not in mine]
        left = [line for line in earlier.left_out if line.partition(":")[0] in {each.name for each in kept}]
        whole = sorted([*self.audits, *kept], key=lambda each: order.index(each.name))
        notices = tuple(dict.fromkeys((*self.notices, *earlier.notices)))
        return Report(tuple(whole), notices, (*self.left_out, *left))

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
    dated = replace(report, audits=tuple(replace(each, made=now) for each in report.audits))
    shared = dated.shareable()
    if shared != dated:
        write_atomic(root / LOCAL, _as_bytes(dated.beside(_earlier(root / LOCAL, order), order), run), mode=0o600)
    earlier = _earlier(root / FILE, order)
    write_atomic(root / FILE, _as_bytes(shared.beside(earlier, order), run))
    return dated.beside(earlier, order)


def _earlier(path: Path, order: Sequence[str]) -> Report:
    """What was kept before; nothing of a file that no audit wrote, which is written anew."""
    try:
        if path.stat().st_size > MOST_BYTES:
            return _NOTHING
        content = json.loads(path.read_bytes())
        audits = tuple(_STORED.validate_python(each) for each in content["audits"] if each["name"] in order)
        return Report(audits, tuple(map(str, content["notices"])), tuple(map(str, content["left_out"])))
    except (OSError, ValueError, KeyError, TypeError):
        return _NOTHING


_NOTHING = Report((), (), ())
_STORED = TypeAdapter(AuditResult)


def _as_bytes(report: Report, run: str | None) -> bytes:
    return json.dumps({"run": run, **report.to_json()}, indent=2, allow_nan=False).encode()
