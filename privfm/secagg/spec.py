"""What one round is about: fixed before it starts, the same for everybody, and bound into every signature and key."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from privfm.errors import ProtocolError
from privfm.secagg.encoding import Writer, check_bytes, check_name, digest
from privfm.secagg.roster import COORDINATOR, Roster
from privfm.secagg.stages import some_of

__all__ = [
    "VERSION",
    "ClientPolicy",
    "LedgerMark",
    "Neighbours",
    "RoundSpec",
    "VectorSpec",
    "largest_max_corrupt",
    "smallest_threshold",
]

VERSION = 1
RINGS = (16, 24, 32)
COMPLETE_GRAPH_LIMIT = 100
COUNTER_LIMIT = 2**63


@dataclass(frozen=True)
class VectorSpec:
    """A vector that every hospital sends: real numbers, clamped and rounded to integers, added modulo 2^ring_bits.

    Args:
        name: "update".
        length: number of entries.
        clip: entries are clamped to [-clip, clip].
        levels: entries become integers in [-levels, levels].
        ring_bits: 16, 24 or 32.
    """

    name: str
    length: int
    clip: float
    levels: int
    ring_bits: int = 24

    def __post_init__(self) -> None:
        check_name(self.name)
        if not 1 <= self.length < 2**32:
            raise ValueError(f"length={self.length}: need 1 to 2^32 - 1")
        if self.ring_bits not in RINGS:
            raise ValueError(f"ring_bits={self.ring_bits}: need one of {RINGS}")
        if not 1e-20 <= self.clip <= 1e20:
            raise ValueError(f"clip={self.clip}: need 1e-20 to 1e20, which single precision can scale")
        if not 1 <= self.levels < 2 ** (self.ring_bits - 1):
            raise ValueError(f"levels={self.levels}: need 1 to 2^{self.ring_bits - 1} - 1")

    @classmethod
    def fit(cls, name: str, length: int, clip: float, *, clients: int, ring_bits: int = 24) -> VectorSpec:
        """The finest levels whose sum over that many clients cannot wrap.

        >>> VectorSpec.fit("update", 1000, 0.5, clients=5).levels
        1677721
        """
        return cls(name, length, clip, (2**ring_bits - 1) // (2 * clients), ring_bits)

    @property
    def step(self) -> float:
        """What one level is worth."""
        return self.clip / self.levels

    def _write(self, out: Writer) -> None:
        out.name(self.name).u32(self.length).name(float(self.clip).hex()).u32(self.levels).u8(self.ring_bits)


@dataclass(frozen=True)
class LedgerMark:
    """Where a hospital's ledger stands; signed into each round, so that its peers notice when it goes back.

    A hospital takes a counter for each message that commits it: one before it advertises, and the next before it masks.

    Args:
        counter: of the newest such entry, at most 2^63.
        head: hash of the newest entry, 32 bytes.
    """

    counter: int
    head: bytes

    def __post_init__(self) -> None:
        check_bytes("head", self.head, 32)
        if not 0 <= self.counter <= COUNTER_LIMIT:
            raise ValueError(f"counter={self.counter}: need 0 to 2^63")

    def follows(self, seen: LedgerMark) -> bool:
        """Whether a ledger that once stood at `seen` may stand here now.

        >>> LedgerMark(4, bytes(32)).follows(LedgerMark(5, bytes(32)))
        False
        """
        return self.counter > seen.counter or self == seen

    def masked(self) -> LedgerMark:
        """Where the ledger of one who advertised with this mark, and masked, stands at least: keep it of survivors.

        Else a hospital whose ledger was restored to a moment between the two could mask another vector unnoticed.

        >>> LedgerMark(4, bytes(32)).masked().counter
        5
        """
        return LedgerMark(self.counter + 1, self.head)


@dataclass(frozen=True)
class Neighbours:
    """A sparse graph in place of the complete one: each hospital shares its seeds with a few, drawn by itself.

    Args:
        degree: k, how many it draws.
        threshold: t, how many of those must answer at every stage for each hospital in the sum.
    """

    degree: int
    threshold: int

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= self.degree:
            raise ValueError(f"threshold={self.threshold}: need 2 to the degree {self.degree}")


@dataclass(frozen=True)
class RoundSpec:
    """The public parameters of one attempt at one round.

    Each hospital builds it from its own plan, roster and copy of the model, never from what the coordinator says:
    `context0` is under every signature, so hospitals with different ones cannot be in a round together.

    Args:
        run: 16 to 64 bytes that name the run.
        round: below 2^64.
        attempt: below 2^32, counts the tries of this round.
        plan_hash: 32 bytes.
        roster: of which the cohort is part.
        model_hash: 32 bytes, of the global model.
        vectors: in the order in which they are sent.
        cohort: names of the hospitals invited, ascending.
        threshold: hospitals needed at every stage.
        neighbours: None for the complete graph, in which everybody is everybody's neighbour.

    Raises:
        ValueError: also when a sum over the cohort could wrap: 2 * len(cohort) * levels >= 2^ring_bits.
    """

    run: bytes
    round: int
    attempt: int
    plan_hash: bytes
    roster: Roster
    model_hash: bytes
    vectors: tuple[VectorSpec, ...]
    cohort: tuple[str, ...]
    threshold: int
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        if not 16 <= len(self.run) <= 64:
            raise ValueError(f"run: need 16 to 64 bytes, not {len(self.run)}")
        check_bytes("plan_hash", self.plan_hash, 32)
        check_bytes("model_hash", self.model_hash, 32)
        if not (0 <= self.round < 2**64 and 0 <= self.attempt < 2**32):
            raise ValueError(f"round={self.round}, attempt={self.attempt}: need u64 and u32")
        self._check_cohort()
        self._check_vectors()

    def _check_cohort(self) -> None:
        for left, right in pairwise(self.cohort):
            if left >= right:
                raise ValueError(f"cohort: {right!r} after {left!r}, need each name once, in ascending order")
        strangers = set(self.cohort) - set(self.roster.names)
        if strangers:
            raise ValueError(f"cohort: {some_of(strangers)} not in roster version {self.roster.version}")
        if not 2 <= self.threshold <= self.size:
            raise ValueError(f"threshold={self.threshold}: need 2 to the cohort's {self.size}")
        if self.neighbours is None and self.size > COMPLETE_GRAPH_LIMIT:
            raise ValueError(f"cohort of {self.size}: at most {COMPLETE_GRAPH_LIMIT} in a complete graph")
        if self.neighbours is not None and self.neighbours.degree >= self.size:
            raise ValueError(f"degree={self.neighbours.degree}: need fewer than the cohort's {self.size}")

    def _check_vectors(self) -> None:
        names = [vector.name for vector in self.vectors]
        if not 1 <= len(names) <= 16 or len(set(names)) != len(names):
            raise ValueError(f"vectors={names}: need 1 to 16, each name once")
        for vector in self.vectors:
            if 2 * self.size * vector.levels >= 2**vector.ring_bits:
                raise ValueError(
                    f"levels={vector.levels} of {vector.name!r}: the sum of {self.size} can wrap modulo "
                    f"2^{vector.ring_bits}; need 2 * {self.size} * levels below that"
                )

    def check_graph(self, *, sparse: bool) -> None:
        """Refuse to play a round by the other graph's rules.

        Raises:
            ValueError: naming the package that plays it.
        """
        if (self.neighbours is not None) != sparse:
            package = "privfm.secagg" if sparse else "privfm.secagg.sparse"
            raise ValueError(f"neighbours={self.neighbours}: this round is for {package}")

    @property
    def size(self) -> int:
        """n, the number of hospitals invited."""
        return len(self.cohort)

    @property
    def number(self) -> tuple[int, int]:
        """(round, attempt): a hospital advertises for ascending ones only."""
        return self.round, self.attempt

    @cached_property
    def context0(self) -> bytes:
        """32 bytes over every parameter."""
        out = Writer().blob(self.run).u64(self.round).u32(self.attempt)
        out.raw(self.plan_hash).raw(self.roster.digest).raw(self.model_hash)
        out.sequence(self.vectors, lambda writer, vector: vector._write(writer))
        out.sequence(self.cohort, lambda writer, name: writer.name(name)).u32(self.threshold)
        graph = self.neighbours
        out.u32(graph.degree if graph else 0).u32(graph.threshold if graph else 0)
        return digest("context0", VERSION.to_bytes(1, "big"), bytes(out))


@dataclass(frozen=True)
class ClientPolicy:
    """What a hospital insists on, from its own configuration.

    Args:
        max_corrupt: how many other hospitals may collude with the coordinator without its update lying open.
        min_cohort: it answers only when at least so many hospitals are added up.
    """

    max_corrupt: int
    min_cohort: int

    def __post_init__(self) -> None:
        if self.max_corrupt < 0 or self.min_cohort < 2:
            raise ValueError(f"max_corrupt={self.max_corrupt}, min_cohort={self.min_cohort}: need at least 0 and 2")

    def check(self, cohort: int, threshold: int) -> None:
        """Refuse a cohort of n whose threshold t does not protect this hospital.

        * t >= floor(2n/3) + 1 and 2t > n + max_corrupt: two different survivor sets never both find t signers,
          because the honest sign once.
        * t - max_corrupt >= 2: no sum holds fewer than two honest hospitals.
        * n >= min_cohort: else every survivor set would be too small.

        Raises:
            ProtocolError: naming the rule.
        """
        if threshold < smallest_threshold(cohort):
            raise _refusal(f"threshold {threshold} of {cohort} is below {smallest_threshold(cohort)}")
        if self.max_corrupt > largest_max_corrupt(cohort, threshold):
            raise _refusal(f"threshold {threshold} of {cohort} does not withstand max_corrupt={self.max_corrupt}")
        if cohort < max(self.min_cohort, threshold):
            raise _refusal(f"cohort of {cohort} is below {max(self.min_cohort, threshold)}")


def _refusal(reason: str) -> ProtocolError:
    return ProtocolError(f"refused: {reason}; agree on another plan or on this hospital's own limits", (COORDINATOR,))


def smallest_threshold(cohort: int) -> int:
    """floor(2n/3) + 1, more than two thirds.

    >>> [smallest_threshold(n) for n in (3, 5, 7, 10)]
    [3, 4, 5, 7]
    """
    return 2 * cohort // 3 + 1


def largest_max_corrupt(cohort: int, threshold: int) -> int:
    """The largest c with 2t > n + c and t - c >= 2.

    >>> [largest_max_corrupt(n, smallest_threshold(n)) for n in (3, 5, 7, 10)]
    [1, 2, 2, 3]
    """
    return min(2 * threshold - cohort - 1, threshold - 2)
