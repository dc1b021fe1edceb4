"""The coordinator's running total: uploads are added as they arrive, so memory does not grow with their number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from privfm.errors import ProtocolError
from privfm.secagg.collecting import Fault, Faults
from privfm.secagg.spec import VectorSpec
from privfm.secagg.stages import AnyStage
from privfm.secagg.upload import add_upload

__all__ = ["RunningSum"]

Head = TypeVar("Head")
Closed = TypeVar("Closed")


class RunningSum(ABC, Generic[Head, Closed]):
    """Adds the uploads that hold and remembers the faults of the others.

    Args:
        stage: at which faults are recorded.
        vectors: of the round.
        threads: changes the speed alone.
    """

    def __init__(self, stage: AnyStage, vectors: Sequence[VectorSpec], threads: int) -> None:
        self._stage = stage
        self._vectors = vectors
        self._threads = threads
        self._totals = tuple(np.zeros(vector.length, np.uint32) for vector in vectors)
        self._added: dict[str, Head] = {}
        self._faults: dict[str, Fault] = {}
        self._closed = False

    def add(self, name: str, message: bytes | memoryview) -> None:
        """Add one hospital's upload; record its first fault if it does not hold, or if it is its second."""
        if self._closed:
            raise ValueError(f"name={name!r}: the sum is closed")
        try:
            if name in self._added:
                raise ProtocolError("no upload is expected")
            head, upload, tag_key = self._read(name, message)
            add_upload(self._vectors, upload, tag_key, self._totals, self._threads)
        except ProtocolError as error:
            self._faults.setdefault(name, Fault((name,), self._stage, str(error)))
        else:
            self._added[name] = head

    def add_all(self, messages: Mapping[str, bytes | memoryview]) -> Closed:
        """Add what arrived, and close."""
        for name, message in messages.items():
            self.add(name, message)
        return self.close()

    def close(self) -> Closed:
        """Freeze the survivors: those whose vectors were added.

        Raises:
            ProtocolError: fewer than the threshold are left.
        """
        self._closed = True
        return self._freeze(dict(sorted(self._added.items())), tuple(self._faults.values()))

    @abstractmethod
    def _read(self, name: str, message: bytes | memoryview) -> tuple[Head, bytes | memoryview, bytes]:
        """What stands before an upload, the upload, and the key of its tags.

        Raises:
            ProtocolError: no upload is expected from that hospital, or what stands before it does not hold.
        """

    @abstractmethod
    def _freeze(self, added: Mapping[str, Head], faults: Faults) -> Closed:
        """The state after, and what each survivor is sent."""
