"""What a person sees while a run goes on: bars on a terminal, a line a round elsewhere; all on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from privfm.dp.figures import figure
from privfm.federation.observer import Observer
from privfm.federation.records import RoundRecord
from privfm_cli.console import say

__all__ = ["DrawnProgress", "PlainProgress", "spent", "watching"]

SECONDS_BETWEEN_LINES = 15.0
MOST_HOSPITALS_BY_NAME = 8


@contextmanager
def watching(allowed: float) -> Iterator[Observer]:
    """Yield the observer that suits standard error, for a run that allows `allowed` epsilon."""
    if sys.stderr.isatty():
        with DrawnProgress(allowed) as drawn:
            yield drawn
    else:
        yield PlainProgress(allowed)


class Clock:
    """Time left, from the rounds that this process finished."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._rounds = 0

    def start(self) -> None:
        if self._started is None:
            self._started = time.monotonic()

    def left(self, number: int, rounds: int) -> str:
        """Return the time left in words after round `number` of `rounds` was finished."""
        self._rounds += 1
        seconds = (time.monotonic() - (self._started or time.monotonic())) / self._rounds * (rounds - number)
        return duration(seconds) + " left"


class PlainProgress(Observer):
    """A line for every stage and round."""

    def __init__(self, allowed: float) -> None:
        self._allowed = allowed
        self._clock = Clock()
        self._rounds = 0
        self._quiet_until = 0.0

    def stage(self, text: str) -> None:
        say(text)
        self._quiet_until = time.monotonic() + SECONDS_BETWEEN_LINES

    def progress(self, what: str, done: int, total: int) -> None:
        if time.monotonic() >= self._quiet_until:
            say(f"  {what} {done}/{total}")
            self._quiet_until = time.monotonic() + SECONDS_BETWEEN_LINES

    def round_started(self, number: int, rounds: int) -> None:
        self._clock.start()
        self._rounds = rounds

    def round_finished(self, record: RoundRecord) -> None:
        left = self._clock.left(record.round, self._rounds)
        say(
            f"round {record.round}/{self._rounds}  {_losses(record)}  "
            f"epsilon so far {spent(record.epsilon)}, {self._allowed:g} allowed  {left}"
        )

    def warn(self, text: str) -> None:
        say(f"privfm: warning: {text}")


class DrawnProgress(Observer):
    """A bar for the stage, and below it what each hospital has spent."""

    def __init__(self, allowed: float, console: Console | None = None) -> None:
        self._allowed = allowed
        self._clock = Clock()
        self._rounds = 0
        self._epsilon: dict[str, float] = {}
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._task: TaskID | None = None
        self._spending = Text(style="dim")
        self._live = Live(
            Group(self._bars, self._spending),
            console=console or Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> DrawnProgress:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def stage(self, text: str) -> None:
        self._show(text, 0, None)

    def progress(self, what: str, done: int, total: int) -> None:
        self._show(what, done, total)

    def round_started(self, number: int, rounds: int) -> None:
        self._clock.start()
        self._rounds = rounds
        if number == 1 or not self._epsilon:
            self._show("rounds", number - 1, rounds)

    def hospital_finished(self, number: int, hospital: str, epsilon: float) -> None:
        self._epsilon[hospital] = epsilon
        self._spending.plain = f"  epsilon so far {spent(self._epsilon)}, {self._allowed:g} allowed"

    def round_finished(self, record: RoundRecord) -> None:
        left = self._clock.left(record.round, self._rounds)
        self._epsilon = dict(record.epsilon)
        self._show("rounds", record.round, self._rounds, f"{_losses(record)}, {left}")

    def warn(self, text: str) -> None:
        self._live.console.print(Text(f"privfm: warning: {text}", style="yellow"))

    def _show(self, what: str, done: int, total: int | None, note: str = "") -> None:
        """Show `what` on the bar; the bar before it becomes a line when its stage is over."""
        note = " ".join(filter(None, [f"{done}/{total}" if total else "", note]))
        if self._task is not None and self._bars.tasks[0].description == what:
            self._bars.update(self._task, completed=done, total=total, note=note)
            return
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=total, completed=done, note=note)


def spent(epsilon: Mapping[str, float]) -> str:
    """Return what hospitals spent: one number when it is the same for all, by name while they are few.

    Example:
        >>> spent({"north": 2.001, "south": 2.0})
        '2.00 at each of 2 hospitals'
        >>> spent({"north": 1.234, "south": 2.0})
        'north 1.23, south 2.00'
        >>> spent({f"h{i}": i / 10 for i in range(20)})
        '0.00 to 1.90 at 20 hospitals'
    """
    if len({figure(value, 2) for value in epsilon.values()}) == 1:
        return f"{figure(max(epsilon.values()), 2)} at each of {len(epsilon)} hospitals"
    if len(epsilon) > MOST_HOSPITALS_BY_NAME:
        return f"{figure(min(epsilon.values()), 2)} to {figure(max(epsilon.values()), 2)} at {len(epsilon)} hospitals"
    return ", ".join(f"{hospital} {figure(value, 2)}" for hospital, value in epsilon.items())


def duration(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> duration(8.4), duration(135), duration(7500)
        ('8 s', '2 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _losses(record: RoundRecord) -> str:
    """The losses that a round shows: on public images, and the hospitals' own where the plan asks for it."""
    own = "" if record.local_loss is None else ", hospitals' own {:.3f}, noise ±{:.3f}".format(*record.local_loss)
    return f"public loss {record.public_loss:.4f}{own}"
