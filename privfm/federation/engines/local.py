"""All hospitals in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from privfm.errors import ProtocolError
from privfm.federation.hospital import Hospital
from privfm.ids import HospitalId
from privfm.secagg import Stage

__all__ = ["LocalEngine"]


class LocalEngine:
    """Runs the real protocol between objects of one process: a simulation of the separation, not of the steps.

    Args:
        hospitals: by name.
        heard: called with stage, hospital and, when it refused to answer, why.
    """

    def __init__(
        self, hospitals: Mapping[HospitalId, Hospital], heard: Callable[[Stage, str, ProtocolError | None], None]
    ) -> None:
        self._hospitals = hospitals
        self._heard = heard

    def exchange(self, stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        for name, message in outgoing.items():
            try:
                answer = self._hospitals[HospitalId(name)].answer(stage, message)
            except ProtocolError as refusal:
                self._heard(stage, name, refusal)
            else:
                self._heard(stage, name, None)
                yield name, answer
