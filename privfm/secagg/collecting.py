"""How a coordinator takes in a stage's messages: what holds is kept, what does not is a fault of whoever sent it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from privfm.errors import ProtocolError
from privfm.secagg.framing import Body, Signed
from privfm.secagg.spec import RoundSpec
from privfm.secagg.stages import AnyStage

__all__ = ["Fault", "Faults", "check_signed", "collect", "read_signed", "require"]

Read = TypeVar("Read")


@dataclass(frozen=True)
class Fault:
    """Why a hospital's message did not count.

    Args:
        blamed: one hospital, or several of which one is at fault.
    """

    blamed: tuple[str, ...]
    stage: AnyStage
    reason: str


Faults = tuple[Fault, ...]


def collect(
    stage: AnyStage, messages: Mapping[str, bytes], expected: Sequence[str], read: Callable[[str, bytes], Read]
) -> tuple[dict[str, Read], Faults]:
    """What the messages say, in the order expected; a fault for each that does not hold or was not expected."""
    good, faults = {}, [Fault((name,), stage, "not expected") for name in messages if name not in expected]
    for name in expected:
        if name in messages:
            try:
                good[name] = read(name, messages[name])
            except ProtocolError as error:
                faults.append(Fault((name,), stage, str(error)))
    return good, tuple(faults)


def read_signed(kind: type[Body], name: str, data: bytes, spec: RoundSpec, context: bytes) -> Signed[Body]:
    """A message that a hospital signed in a context.

    Raises:
        ProtocolError: it is not.
    """
    message = Signed.decode(kind, data)
    check_signed(message, name, spec, context)
    return message


def check_signed(message: Signed[Body], name: str, spec: RoundSpec, context: bytes) -> None:
    """Check in whose name a message speaks, and that they signed it.

    Raises:
        ProtocolError: somebody else did.
    """
    if message.body.sender != name:
        raise ProtocolError(f"speaks for {message.body.sender}")
    message.check(spec.roster.key_of(name), context)


def require(stage: AnyStage, spec: RoundSpec, present: Collection[str], faults: Faults) -> None:
    """End the round when too few are left.

    Raises:
        ProtocolError: blaming everybody at fault so far.
    """
    if len(present) < spec.threshold:
        blamed = tuple(dict.fromkeys(name for fault in faults for name in fault.blamed))
        reasons = "".join(f"; {' or '.join(fault.blamed)} at {fault.stage}: {fault.reason}" for fault in faults)
        raise ProtocolError(f"{stage}: {len(present)} of {spec.size} answered, need {spec.threshold}{reasons}", blamed)
