"""Whole rounds of a federation on the bench: from the steps over ledgers, stored updates and masks to the sum.

What a sum holds, and what ledgers hold for it, is compared with the hospitals' steps taken once more beside them under
the same coins: when everybody answers, when one drops out, and when a round has to be asked for again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional

from privfm.dp.coins import InjectedCoins, Stream
from privfm.dp.events import SampledGaussian, total_steps
from privfm.errors import ProtocolError
from privfm.federation.announcement import Announcement, model_hash
from privfm.federation.directory import RunDirectory, new_run
from privfm.federation.engines.local import LocalEngine
from privfm.federation.hospital import Hospital
from privfm.federation.network import network_hash, trained
from privfm.federation.planning import round_spec, update_weight
from privfm.federation.releases import Releases
from privfm.federation.rounds import SecureSum, play_round
from privfm.federation.simulation import found_federation, open_hospitals
from privfm.ids import HospitalId
from privfm.plan import HospitalPlan, Plan
from privfm.secagg import Stage, VectorSpec, dequantise, quantise, smallest_threshold
from privfm_attacks.bench import OUTPUTS, Bench, KnownUnits, distinct_hospitals
from privfm_attacks.verdicts import Finding

__all__ = ["whole_rounds"]

RUN = b"a round on bench"
HOSPITALS = 5
"""So many that one can drop out."""

ROUNDS, STEPS, UNITS_DRAWN = 3, 2, 6

Levels = list[Int32[np.ndarray, " _"]]


def whole_rounds(plan: Plan) -> Iterator[Finding]:
    """Play a round that everybody answers, one in which a hospital drops out, and one that is asked for again."""
    plan = _shortened(plan)
    names = [HospitalId(hospital.id) for hospital in plan.hospitals]
    with tempfile.TemporaryDirectory() as folder, _opened(plan, Path(folder) / "run") as federation:
        yield federation.compare("sum", federation.play(1), names)
        yield federation.compare("sum after a drop-out", federation.play(2, lost={names[-1]}), names[:-1])
        try:
            federation.play(3, lost=set(names))
        except ProtocolError:
            yield federation.compare("sum asked for again", federation.play(3, attempt=1), names)
        else:
            yield Finding("sum asked for again", False, "a round that nobody answered has a sum")
        yield from _charges(list(federation.parties.values()))


def _shortened(plan: Plan) -> Plan:
    """The plan's mechanisms in a federation of few hospitals, rounds and steps, on this machine's processor."""
    distinct = islice(cycle(distinct_hospitals(plan)), HOSPITALS)
    hospitals = tuple(each.model_copy(update={"id": f"bench-{place}"}) for place, each in enumerate(distinct))
    federation = {"rounds": ROUNDS, "local_steps": min(STEPS, plan.federation.local_steps)}
    secagg = {"threshold": smallest_threshold(HOSPITALS), "max_corrupt": 0}
    return plan.model_copy(
        update={
            "hospitals": hospitals,
            "federation": plan.federation.model_copy(update=federation),
            "secagg": plan.secagg.model_copy(update=secagg),
            "performance": plan.performance.model_copy(update={"device": "cpu"}),
        }
    )


class _Watched:
    """Coins that can be tossed again, and how many steps had been charged whenever noise was drawn."""

    private = False

    def __init__(self, name: str) -> None:
        self._coins = InjectedCoins(name.encode())
        self.spent: Callable[[], int] = lambda: 0
        self.charged: list[int] = []

    def stream(self, *label: str | int) -> Stream:
        if label[0] in ("noise", "loss noise"):
            self.charged.append(self.spent())
        return self._coins.stream(*label)


@dataclass
class _Party:
    """A hospital, and its steps beside it.

    Args:
        hospital: the real one.
        bench: of its public numbers.
        coins: that it tosses.
        beside: the same mechanism, units and coins, which nobody watches.
    """

    hospital: Hospital
    bench: Bench
    coins: _Watched
    beside: Releases

    def vectors(self, number: int, start: Float[Tensor, " parameters"], specs: tuple[VectorSpec, ...]) -> Levels:
        """What the hospital is to send in a round: its steps' releases, weighted and rounded."""
        weight = update_weight(self.bench.plan, self.bench.hospital)
        vectors = []
        for place, (vector, spec) in enumerate(zip(self.beside.of_round(start, number, 0), specs, strict=True)):
            rounding = self.beside.coins.stream("rounding", number, 0, place)
            vectors.append(quantise((weight * vector).numpy(), spec, rounding.read(32)))
        return vectors


@dataclass
class _Federation:
    """Open hospitals, and what they are to send in each round."""

    plan: Plan
    parties: Mapping[HospitalId, _Party]
    start: Float[Tensor, " parameters"]
    start_hash: bytes
    wanted: dict[HospitalId, Levels] = field(default_factory=dict)

    def play(self, number: int, attempt: int = 0, lost: Set[HospitalId] = frozenset()) -> SecureSum:
        """Return a round's sum, when some hospitals' uploads do not arrive."""
        hospitals = {name: party.hospital for name, party in self.parties.items()}
        announcement = Announcement(number, attempt, 0, tuple(sorted(hospitals)), self.start.numpy())
        bound = model_hash(self.start_hash, announcement)
        roster = next(iter(hospitals.values())).membership.roster
        self.spec = round_spec(self.plan, RUN, roster, announcement, bound, self.start.numel())
        if attempt == 0:
            due = {name: party.vectors(number, self.start, self.spec.vectors) for name, party in self.parties.items()}
            self.wanted = due
        return play_round(self.spec, announcement, _Losing(hospitals, lost), os.urandom(32))

    def compare(self, check: str, found: SecureSum, names: Sequence[HospitalId]) -> Finding:
        """Whether a sum is that of these hospitals' releases, to the bit."""
        given = [found.total, *([] if found.loss is None else [np.array([found.loss])])]
        off = abs(len(given) - len(self.spec.vectors))
        for place, (total, spec) in enumerate(zip(given, self.spec.vectors, strict=False)):
            levels = np.stack([self.wanted[name][place] for name in names]).sum(axis=0, dtype=np.int32)
            off += int((total != dequantise(levels, spec)).sum())
        passed = off == 0 and found.survivors == tuple(names)
        return Finding(check, passed, f"{off} values are not the sum of {len(names)} releases")


def _charges(parties: Sequence[_Party]) -> Iterator[Finding]:
    """Every step was charged before its noise was drawn, as what it is, and none was charged that did not run."""
    ran = [len(party.coins.charged) for party in parties]
    late = sum(charged < place for party in parties for place, charged in enumerate(party.coins.charged, start=1))
    yield Finding("charged before", late == 0, f"{late} of {sum(ran)} steps ran before they were charged")
    ledgers = [party.hospital.ledger.events(RUN.hex()) for party in parties]
    wanted = [
        (SampledGaussian(party.bench.rate, party.bench.noise_multiplier, steps),)
        for party, steps in zip(parties, ran, strict=True)
    ]
    charged = sum(map(total_steps, ledgers))
    yield Finding("ledger", ledgers == wanted, f"{charged} steps in ledgers of {len(parties)}, {sum(ran)} ran")


class _Losing(LocalEngine):
    """Loses some hospitals' uploads."""

    def __init__(self, hospitals: Mapping[HospitalId, Hospital], lost: Set[HospitalId]) -> None:
        super().__init__(hospitals, lambda *_: None)
        self._lost = lost

    def exchange(self, stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        for name, answer in super().exchange(stage, outgoing):
            if stage is not Stage.MASK or HospitalId(name) not in self._lost:
                yield name, answer


@contextmanager
def _opened(plan: Plan, root: Path) -> Iterator[_Federation]:
    """A federation in a folder of its own."""
    benches = {HospitalId(hospital.id): Bench(plan, hospital) for hospital in plan.hospitals}
    coins, rows = {name: _Watched(name) for name in benches}, _rows(plan)
    beside = {
        name: bench.releases(rows, InjectedCoins(name.encode()), units=bench.units_for(UNITS_DRAWN))
        for name, bench in benches.items()
    }
    learner = next(iter(beside.values())).learner
    start, start_hash = trained(learner.network), network_hash(learner.network)

    def units_of(hospital: HospitalPlan) -> KnownUnits:
        units = beside[HospitalId(hospital.id)].units
        return KnownUnits(len(units), cast(KnownUnits, units).micro_batch)

    with new_run(root) as draft:
        (draft.root / "plan.toml").write_text(plan.to_toml(), encoding="utf-8")
        found_federation(draft, plan, RUN, private=False)
    with open_hospitals(
        RunDirectory(root), plan, RUN, units_of, learner, lambda name: coins[HospitalId(name)]
    ) as hospitals:
        for name, hospital in hospitals.items():
            coins[name].spent = partial(hospital.ledger.spent, RUN.hex())
        yield _Federation(
            plan,
            {name: _Party(hospital, benches[name], coins[name], beside[name]) for name, hospital in hospitals.items()},
            start,
            start_hash,
        )


def _rows(plan: Plan) -> Float[Tensor, "units outputs"]:
    """Of units whose gradients are up to twice as long as the clip norm."""
    generator = torch.Generator().manual_seed(10)
    lengths = torch.linspace(0.2, 2.0, UNITS_DRAWN)[:, None] * (plan.privacy.clip_norm or 1.0)
    return lengths * functional.normalize(torch.randn(UNITS_DRAWN, OUTPUTS, generator=generator))
