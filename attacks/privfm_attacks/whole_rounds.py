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
from privfm.errors import BudgetExceeded, PrivfmError, ProtocolError
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
from privfm.secagg import LedgerMark, RoundSpec, Stage, VectorSpec, client, dequantise, quantise, smallest_threshold
from privfm.secagg.steps import Ready
from privfm_attacks.bench import OUTPUTS, Bench, KnownUnits, distinct_hospitals
from privfm_attacks.verdicts import Finding

__all__ = ["whole_rounds"]

RUN = b"a round on bench"
HOSPITALS = 5
"""So many that one can drop out."""

ROUNDS, STEPS, UNITS_DRAWN = 4, 2, 6

Levels = list[Int32[np.ndarray, " _"]]


def whole_rounds(plan: Plan) -> Iterator[Finding]:
    """Play rounds that everybody answers, that a hospital drops out of, that are asked for again and computed anew."""
    plan = _shortened(plan)
    names = [HospitalId(hospital.id) for hospital in plan.hospitals]
    with tempfile.TemporaryDirectory() as folder, _opened(plan, Path(folder) / "run") as federation:
        play, everybody = federation.play, frozenset(names)
        first = play(1)
        yield federation.compare("sum", first, names)
        yield federation.keyed(first)
        yield federation.compare("sum after a drop-out", play(2, lost={Stage.MASK: {names[-1]}}), names[:-1])
        yield _refused("a sum of nobody", lambda: play(3, lost={Stage.MASK: everybody}))
        yield federation.compare("sum asked for again", play(3, 1), names)
        yield _refused("another model under one name", lambda: play(3, 2, model=federation.start + 1))
        yield _refused("a round that nobody opens", lambda: play(4, lost={Stage.UNMASK: everybody}))
        yield _refused("the same updates with fewer others", lambda: play(4, 1, lost={Stage.MASK: {names[0]}}))
        yield federation.compare("sum computed anew", play(4, 2, generation=1), names)
        yield _refused("more than the reserve", lambda: play(4, 3, generation=2), BudgetExceeded)
        yield from _charges(list(federation.parties.values()))


def _refused(what: str, play: Callable[[], SecureSum], how: type[PrivfmError] = ProtocolError) -> Finding:
    """Whether hospitals do not go along with it."""
    try:
        found = play()
    except how as refusal:
        return Finding(f"refused: {what}", True, type(refusal).__name__)
    return Finding(f"refused: {what}", False, f"there is a sum over {', '.join(found.survivors)}")


def _shortened(plan: Plan) -> Plan:
    """The plan's mechanisms in a federation of few hospitals, rounds and steps, on this machine's processor."""
    distinct = islice(cycle(distinct_hospitals(plan)), HOSPITALS)
    hospitals = tuple(each.model_copy(update={"id": f"bench-{place}"}) for place, each in enumerate(distinct))
    steps = min(STEPS, plan.federation.local_steps)
    federation = {"rounds": ROUNDS, "local_steps": steps, "retry_rounds": 1}
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

    def vectors(
        self, number: tuple[int, int], start: Float[Tensor, " parameters"], specs: tuple[VectorSpec, ...]
    ) -> Levels:
        """What the hospital is to send in a round and charge: its steps' releases, weighted and rounded."""
        weight = update_weight(self.bench.plan, self.bench.hospital)
        vectors = []
        for place, (vector, spec) in enumerate(zip(self.beside.of_round(start, *number), specs, strict=True)):
            rounding = self.beside.coins.stream("rounding", *number, place)
            vectors.append(quantise((weight * vector).numpy(), spec, rounding.read(32)))
        return vectors

    def mask_key(self, spec: RoundSpec) -> bytes:
        """The public key that the hospital's own coins give it for a round."""
        member, coins = self.hospital.membership, self.beside.coins.stream("round", *spec.number)
        ready = Ready(spec, member.identity, member.policy)
        state, _ = client.advertise(ready, LedgerMark(1, bytes(32)), answered=None, entropy=coins.read(32))
        return state.package.body.mask_key


@dataclass
class _Federation:
    """Open hospitals, and what they are to send in each round."""

    plan: Plan
    parties: Mapping[HospitalId, _Party]
    start: Float[Tensor, " parameters"]
    start_hash: bytes
    wanted: dict[HospitalId, Levels] = field(default_factory=dict)
    computed: tuple[int, int] = (0, 0)

    def play(
        self,
        number: int,
        attempt: int = 0,
        generation: int = 0,
        lost: Mapping[Stage, Set[HospitalId]] | None = None,
        model: Float[Tensor, " parameters"] | None = None,
    ) -> SecureSum:
        """Return a round's sum, when some hospitals' answers do not arrive; each generation is computed once."""
        hospitals = {name: party.hospital for name, party in self.parties.items()}
        announced = (self.start if model is None else model).numpy()
        announcement = Announcement(number, attempt, generation, tuple(sorted(hospitals)), announced)
        bound = model_hash(self.start_hash, announcement)
        roster = next(iter(hospitals.values())).membership.roster
        self.spec = round_spec(self.plan, RUN, roster, announcement, bound, self.start.numel())
        if (number, generation) != self.computed:
            charge, specs = (number, generation), self.spec.vectors
            self.wanted = {name: party.vectors(charge, self.start, specs) for name, party in self.parties.items()}
            self.computed = charge
        return play_round(self.spec, announcement, _Losing(hospitals, lost or {}), os.urandom(32))

    def compare(self, check: str, found: SecureSum, names: Sequence[HospitalId]) -> Finding:
        """Whether a sum is that of these hospitals' releases, to the bit."""
        given = [found.total, *([] if found.loss is None else [np.array([found.loss])])]
        off = abs(len(given) - len(self.spec.vectors))
        for place, (total, spec) in enumerate(zip(given, self.spec.vectors, strict=False)):
            levels = np.stack([self.wanted[name][place] for name in names]).sum(axis=0, dtype=np.int32)
            off += int((total != dequantise(levels, spec)).sum())
        passed = off == 0 and found.survivors == tuple(names)
        return Finding(check, passed, f"{off} values are not the sum of {len(names)} releases")

    def keyed(self, found: SecureSum) -> Finding:
        """Whether masks of the last round are made of secrets that hospitals alone have."""
        off = [name for name, party in self.parties.items() if found.mask_keys[name] != party.mask_key(self.spec)]
        detail = f"of {len(off)} hospitals keys are not made of their own coins"
        return Finding("keys of masks", not off, detail)


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
    """Loses some hospitals' answers."""

    def __init__(self, hospitals: Mapping[HospitalId, Hospital], lost: Mapping[Stage, Set[HospitalId]]) -> None:
        super().__init__(hospitals, lambda *_: None)
        self._lost = lost

    def exchange(self, stage: Stage, outgoing: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        for name, answer in super().exchange(stage, outgoing):
            if HospitalId(name) not in self._lost.get(stage, ()):
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
