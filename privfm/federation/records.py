"""What a run leaves for others to read: the coordinator's record of a round, and the result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["HospitalResult", "Interval", "ProbeComparison", "PublicLoss", "RoundRecord", "RunResult"]


@dataclass(frozen=True)
class RoundRecord:
    """One round as the coordinator saw it: sums, never a hospital's loss, count or norm.

    Args:
        round: counted from 1.
        attempt: 0, or how many times the round was begun before.
        cohort: hospitals that advertised keys.
        survivors: hospitals in the sum.
        update_norm: L2 norm of the averaged update.
        public_loss: the new model's loss on built-in public images.
        local_loss: the survivors' own mean loss on the model before the round, noised by each of them, and the standard
            deviation of that noise; None if the plan does not show it.
        epsilon: what each hospital's ledger has charged this run by now.
        transcript: hex of the protocol's transcript hash.
        model_hash: hex of the SHA-256 of the model that the round started from.
        bytes_up: bytes that one hospital sent, all stages.
        mask_keys: hex of the public key that each hospital's masks came of, fresh every round; empty in older records.
    """

    round: int
    attempt: int
    cohort: tuple[str, ...]
    survivors: tuple[str, ...]
    update_norm: float
    public_loss: float
    local_loss: tuple[float, float] | None
    epsilon: dict[str, float]
    transcript: str
    model_hash: str
    bytes_up: int
    mask_keys: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> RoundRecord:
        """Return the record that `to_json` wrote; KeyError, TypeError or ValueError when it wrote no such thing."""
        names = ["cohort", "survivors", *(["local_loss"] if content["local_loss"] is not None else [])]
        lists = {name: tuple(content[name]) for name in names}
        record = cls(**{**content, **lists})
        record._check_types()
        return record

    def _check_types(self) -> None:
        if not (isinstance(self.epsilon, dict) and isinstance(self.mask_keys, dict)):
            raise TypeError("epsilon and mask_keys must go by hospitals' names")
        numbers = (self.update_norm, self.public_loss, *(self.local_loss or ()), *self.epsilon.values())
        words = (*self.cohort, *self.survivors, *self.epsilon, *self.mask_keys, *self.mask_keys.values())
        if not all(map(_is_count, (self.round, self.attempt, self.bytes_up))):
            raise TypeError("round, attempt and bytes_up must be whole numbers")
        if not all(isinstance(number, float) or _is_count(number) for number in numbers):
            raise TypeError("norms, losses and epsilons must be numbers")
        if not all(isinstance(word, str) and word.isprintable() for word in (*words, self.transcript, self.model_hash)):
            raise TypeError("names, keys and hashes must be words")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


@dataclass(frozen=True)
class HospitalResult:
    """What a hospital spent, from its own ledger, beside its public numbers."""

    id: str
    nominal_units: int
    sample_rate: float
    noise_multiplier: float
    steps: int
    epsilon: float
    epsilon_allowed: float
    delta: float


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbeComparison:
    """Linear probes of one backbone in four states, balanced accuracy on held-out patients.

    Args:
        trained: the run's result.
        untrained: freshly initialised weights.
        noise_only: the run's start after the same noise, steps and optimisers with zero gradients.
        initial: the run's start.
    """

    trained: Interval
    untrained: Interval
    noise_only: Interval
    initial: Interval

    def to_json(self) -> dict[str, Any]:
        states = ("trained", "untrained", "noise_only", "initial")
        values = {state: getattr(self, state).value for state in states}
        intervals = {state: [getattr(self, state).low, getattr(self, state).high] for state in states}
        return {**values, "intervals": intervals}


@dataclass(frozen=True)
class PublicLoss:
    """The objective's loss on built-in public images: a finer measure of learning than the probe, and of anyone's data.

    Args:
        start: at the run's start.
        trained: the run's result.
        noise_only: the start after the same noise, steps and optimisers with zero gradients.
    """

    start: float
    trained: float
    noise_only: float


@dataclass(frozen=True)
class RunResult:
    """What `privfm train` prints.

    Args:
        out: the run's folder.
        model: the exported backbone.
        rounds: of the federation.
        seconds: of this process; of a resumed run, since it was resumed.
        private: False when coins were injected or noise left out.
        hospitals: what each spent.
        public_loss: what was learnt, seen on public images.
        probe: what was learnt, seen on held-out patients; None when they are not to be looked at.
        composed: what a unit with images at as many hospitals as the plan declares spent; None where at one.
    """

    out: Path
    model: Path
    rounds: int
    seconds: float
    private: bool
    hospitals: tuple[HospitalResult, ...]
    public_loss: PublicLoss
    probe: ProbeComparison | None
    composed: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "model": str(self.model),
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "private": self.private,
            "hospitals": [asdict(hospital) for hospital in self.hospitals],
            "composed": self.composed,
            "public_loss": asdict(self.public_loss),
            "probe": None if self.probe is None else self.probe.to_json(),
        }
