"""Secure aggregation: milliseconds, bytes and memory of every stage, beside the cipher's own speed and Flower's.

    python -m benchmarks.secagg --json [--clients 3 5 10 32] [--params 1e6 1e7 86e6] [--threads 2]

Each row is one round, checked against the plain sum. `floor_ms` is AES-256 in counter mode over as many 4-byte words
as a hospital's masks have, on the same threads; `coordinator_floor_ms` is adding the survivors' vectors up and
expanding the masks that must go. Flower's mask stage runs in the same process where `flwr` can be imported. Times are
the best of the repeats, since other work on a machine only adds to them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfm.secagg import (
    ClientPolicy,
    Identity,
    LedgerMark,
    Neighbours,
    Roster,
    RoundSpec,
    VectorSpec,
    client,
    quantise,
    server,
    smallest_threshold,
    sparse,
)
from privfm.secagg.chunks import CHUNK, pieces, spread
from privfm.secagg.masks import Mask, keystream
from privfm.secagg.sparse import choose_neighbours, smallest_group
from privfm.secagg.stages import SparseStage
from privfm.secagg.upload import masked_upload

CLIP = 0.05
VECTOR_BYTES = 4
STAGES = tuple(SparseStage)


class Clock:
    """Milliseconds of each thing that was done: the best of many."""

    def __init__(self) -> None:
        self.best: defaultdict[str, float] = defaultdict(lambda: float("inf"))
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        taken = 1e3 * (time.perf_counter() - start)
        self.best[name] = min(self.best[name], taken)
        self.sums[name] += taken
        self.counts[name] += 1


class Memory(Clock):
    """Bytes instead: the most allocated at once, beyond what there was when it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.before, _ = tracemalloc.get_traced_memory()
        self.peak = 0

    @contextmanager
    def over(self, name: str) -> Iterator[None]:
        tracemalloc.reset_peak()
        yield
        self.peak = max(self.peak, tracemalloc.get_traced_memory()[1] - self.before)


@dataclass(frozen=True)
class Size:
    """What a row is about."""

    clients: int
    params: int
    ring_bits: int
    threads: int


class Bench:
    """Rounds of n hospitals that each send the same update of d entries."""

    def __init__(self, size: Size, threshold: int, neighbours: Neighbours | None = None) -> None:
        self.size = size
        names = tuple(f"hospital-{index:04d}" for index in range(size.clients))
        self.identities = {name: Identity.generate(name, os.urandom(32)) for name in names}
        roster = Roster.first("benchmark", {name: key.public for name, key in self.identities.items()})
        self.vector = VectorSpec.fit("update", size.params, CLIP, clients=size.clients, ring_bits=size.ring_bits)
        self.spec = RoundSpec(
            run=os.urandom(16),
            round=1,
            attempt=0,
            plan_hash=bytes(32),
            roster=roster,
            model_hash=bytes(32),
            vectors=(self.vector,),
            cohort=names,
            threshold=threshold,
            neighbours=neighbours,
        )
        self.update = np.float32(CLIP / 3) * np.random.default_rng(0).standard_normal(size.params, dtype=np.float32)
        self.levels = np.zeros(size.params, np.int32)  # kept over rounds, as a hospital may
        self.uploaded = 0

    def play(self, dropped: int, hospital: Clock, coordinator: Clock) -> None:
        """One round in which the last hospitals leave before they upload.

        Raises:
            RuntimeError: the sum is not exact.
        """
        advertised, states, mail = self._advertise(hospital, coordinator)
        deals = {}
        for name, incoming in mail.items():
            with hospital.over("share"):
                states[name], deals[name] = client.share(states[name], incoming, seen={})
        with coordinator.over("share"):
            shared, mail = server.share(advertised, deals)
        plain = np.zeros(self.size.params, np.int32)
        with coordinator.over("mask"):
            total = server.MaskedSum(shared, threads=self.size.threads)
        for name in list(mail)[: len(mail) - dropped]:
            states[name], upload = self._mask(states[name], mail[name], plain, hospital)
            with coordinator.over("mask"):
                total.add(name, upload)
            del upload
        masked, mail = total.close()
        del total
        agreements = {}
        for name, incoming in mail.items():
            with hospital.over("agree"):
                states[name], agreements[name] = client.agree(states[name], incoming)
        with coordinator.over("agree"):
            agreed, mail = server.agree(masked, agreements)
        reveals = {}
        for name, incoming in mail.items():
            with hospital.over("unmask"):
                _, reveals[name] = client.unmask(states[name], incoming)
        with coordinator.over("unmask"):
            outcome = server.unmask(agreed, reveals, threads=self.size.threads)
        if not np.array_equal(outcome.sums[0], plain):
            raise RuntimeError("the unmasked sum is not the plain sum")

    def _advertise(self, hospital: Clock, coordinator: Clock) -> tuple[server.Advertised, dict[str, Any], Any]:
        states: dict[str, Any] = {}
        packages = {}
        policy = ClientPolicy(max_corrupt=0, min_cohort=2)
        for name, identity in self.identities.items():
            ready, mark = client.Ready(self.spec, identity, policy), LedgerMark(1, bytes(32))
            with hospital.over("advertise"):
                states[name], packages[name] = client.advertise(ready, mark, answered=None, entropy=os.urandom(32))
        with coordinator.over("advertise"):
            advertised, mail = server.advertise(self.spec, packages, entropy=os.urandom(32))
        return advertised, states, mail

    def _mask(
        self, state: client.Shared, incoming: bytes, plain: NDArray[np.int32], hospital: Clock
    ) -> tuple[client.Masked, memoryview]:
        """float32 in, upload out."""
        with hospital.over("mask"):
            with hospital.over("of which quantise"):
                levels = quantise(self.update, self.vector, os.urandom(32), threads=self.size.threads, out=self.levels)
            masked, upload = client.mask(state, incoming, lambda: [levels], threads=self.size.threads)
        self.uploaded = len(upload)
        plain += levels
        return masked, upload


def cipher_floor(size: Size, masks: int, clock: Clock) -> None:
    """AES-256-CTR over the words of that many masks, in chunks, on the threads."""

    def work(start: int, stop: int) -> None:
        zeros, buffer = bytes(4 * CHUNK), bytearray(4 * CHUNK)
        streams = [keystream(os.urandom(32), start) for _ in range(masks)]
        for piece in pieces(start, stop):
            for stream in streams:
                stream.update_into(memoryview(zeros)[: 4 * (piece.stop - piece.start)], buffer)

    with clock.over("cipher"):
        spread(size.params, size.threads, work)


def adding_floor(size: Size, vectors: int, clock: Clock) -> None:
    """Plain 32-bit addition of that many vectors, on the threads."""
    vector, total = np.ones(size.params, np.uint32), np.zeros(size.params, np.uint32)

    def work(start: int, stop: int) -> None:
        for piece in pieces(start, stop):
            np.add(total[piece], vector[piece], out=total[piece])

    with clock.over("adding"):
        for _ in range(vectors):
            spread(size.params, size.threads, work)


def measure(size: Size, dropped: int, repeats: int, memory: bool) -> dict[str, Any]:
    """One row of the table."""
    bench, hospital, floor = Bench(size, smallest_threshold(size.clients)), Clock(), Clock()
    survivors = size.clients - dropped
    masks_to_remove = survivors + dropped * survivors
    best: dict[str, float] = {}
    for _ in range(repeats):
        coordinator = Clock()
        bench.play(dropped, hospital, coordinator)
        cipher_floor(size, size.clients, floor)
        best = {name: min(taken, best.get(name, taken)) for name, taken in coordinator.sums.items()}
    removal = Clock()
    for _ in range(repeats):
        cipher_floor(size, masks_to_remove, removal)
        adding_floor(size, survivors, removal)
    reference = removal.best["cipher"] + removal.best["adding"]
    work = best["mask"] + best["unmask"]
    row = {
        **asdict(size),
        "dropped": dropped,
        "client_ms": rounded(hospital.best),
        "floor_ms": round(floor.best["cipher"], 2),
        "mask_over_floor": round(hospital.best["mask"] / floor.best["cipher"], 2),
        "bytes_up_per_param": round(bench.uploaded / size.params, 4),
        "coordinator_ms": rounded(best),
        "coordinator_floor_ms": round(reference, 2),
        "coordinator_over_floor": round(work / reference, 2),
    }
    return {**row, **peaks(bench, dropped)} if memory else row


def rounded(times: dict[str, float]) -> dict[str, float]:
    return {name: round(taken, 2) for name, taken in times.items()}


def peaks(bench: Bench, dropped: int) -> dict[str, float]:
    """The most memory that coordinator and hospital hold at once, in vectors of 4-byte entries.

    The coordinator's is its total, an upload and the sum; the hospital's its update, levels and upload. What the
    benchmark itself keeps is taken off: one vector, the plain sum, while the coordinator works.
    """
    vector = VECTOR_BYTES * bench.size.params
    tracemalloc.start()
    coordinator = Memory()
    bench.play(dropped, Clock(), coordinator)
    hospital = Memory()
    levels = np.zeros(bench.size.params, np.int32)
    with hospital.over("mask"):
        masks = [[Mask(os.urandom(32), 1) for _ in range(bench.size.clients)]]
        masked_upload([bench.vector], [levels], masks, os.urandom(32), bench.size.threads)
    tracemalloc.stop()
    return {
        "coordinator_peak_vectors": round(coordinator.peak / vector - 1, 2),
        "client_peak_vectors": round(hospital.peak / vector + 1, 2),
    }


def flower_mask_ms(size: Size, repeats: int) -> float | None:
    """Flower's own client mask stage, parameters in, upload out; None where it is not installed."""
    if importlib.util.find_spec("flwr") is None:
        return None

    flower: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

    update = np.random.default_rng(0).standard_normal(size.params, dtype=np.float32)
    peers = range(2, size.clients + 1)
    own_secret, own_public = flower.generate_key_pairs()
    state = flower.SecAggPlusState()
    state.nid, state.threshold = 1, smallest_threshold(size.clients)
    state.clipping_range, state.target_range, state.mod_range, state.max_weight = 8.0, 2**22, 2**32, 1000.0
    state.rd_seed, state.sk1 = os.urandom(32), flower.private_key_to_bytes(own_secret)
    state.ss2_dict, state.rd_seed_share_dict, state.sk1_share_dict, state.public_keys_dict = {}, {}, {}, {}
    boxes = []
    for peer in peers:
        secret, public = flower.generate_key_pairs()
        state.public_keys_dict[peer] = (flower.public_key_to_bytes(public), b"")
        state.ss2_dict[peer] = flower.generate_shared_key(secret, own_public)
        text = flower.share_keys_plaintext_concat(peer, 1, os.urandom(32), os.urandom(32))
        boxes.append(flower.encrypt(state.ss2_dict[peer], text))
    configs = flower.ConfigRecord({flower.Key.CIPHERTEXT_LIST: boxes, flower.Key.SOURCE_LIST: list(peers)})
    parameters = importlib.import_module("flwr.common").ndarrays_to_parameters([update])
    clock = Clock()
    for _ in range(repeats):
        with clock.over("mask"):
            flower._collect_masked_vectors(state, configs, 100, parameters)
    return round(clock.best["mask"], 1)


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for params in arguments.params:
        for clients in arguments.clients:
            size = Size(clients, params, arguments.ring_bits, arguments.threads)
            tolerated = clients - smallest_threshold(clients)
            for dropped in sorted({0, tolerated}):
                row = measure(size, dropped, arguments.repeats, arguments.memory)
                flower = flower_mask_ms(size, arguments.repeats) if params * clients <= arguments.flower_limit else None
                if flower is not None:
                    row |= {"flower_mask_ms": flower, "flower_over_ours": round(flower / row["client_ms"]["mask"], 1)}
                yield row


def measure_sparse(cohort: int, params: int, threads: int) -> dict[str, Any]:
    """One round on a sparse graph with 5% corrupt allowed for and 5% dropped, a fifth of them at each stage but one."""
    gone = cohort // 20
    graph = choose_neighbours(cohort, max_corrupt=gone, max_dropped=gone)
    bench = Bench(Size(cohort, params, 24, threads), cohort - gone, graph)
    leaves = {name: STAGES[1 + index % (len(STAGES) - 1)] for index, name in enumerate(list(bench.identities)[-gone:])}
    hospital, coordinator = Clock(), Clock()
    start = time.perf_counter()
    outcome = play_sparse(bench, leaves, hospital, coordinator)
    return {
        "clients": cohort,
        "params": params,
        "threads": threads,
        "graph": asdict(graph),
        "smallest_group": smallest_group(cohort, graph, gone),
        "dropped": gone,
        "survivors": len(outcome.survivors),
        "client_ms": {name: round(hospital.sums[name] / hospital.counts[name], 2) for name in hospital.sums},
        "coordinator_ms": rounded(coordinator.sums),
        "seconds": round(time.perf_counter() - start, 1),
    }


def play_sparse(bench: Bench, leaves: dict[str, SparseStage], hospital: Clock, coordinator: Clock) -> server.Outcome:
    """A round on a sparse graph.

    Raises:
        RuntimeError: the sum is not exact.
    """
    spec, policy = bench.spec, ClientPolicy(max_corrupt=0, min_cohort=2)
    states: dict[str, Any] = {name: client.Ready(spec, key, policy) for name, key in bench.identities.items()}
    levels = quantise(bench.update, bench.vector, os.urandom(32))
    mark = LedgerMark(1, bytes(32))
    answers: dict[SparseStage, Callable[[str, bytes], Any]] = {
        SparseStage.ADVERTISE: lambda name, _: sparse.client.advertise(
            states[name], mark, answered=None, entropy=os.urandom(32)
        ),
        SparseStage.CHOOSE: lambda name, data: sparse.client.choose(states[name], data),
        SparseStage.SHARE: lambda name, data: sparse.client.share(states[name], data, seen={}),
        SparseStage.MASK: lambda name, data: sparse.client.mask(states[name], data, lambda: [levels]),
        SparseStage.AGREE: lambda name, data: sparse.client.agree(states[name], data),
        SparseStage.UNMASK: lambda name, data: sparse.client.unmask(states[name], data),
    }
    mail = dict.fromkeys(states, b"")
    state: Any = None
    for stage in STAGES:
        sent = {}
        for name, data in mail.items():
            if name in leaves and STAGES.index(leaves[name]) <= STAGES.index(stage):
                continue
            with hospital.over(stage):
                states[name], sent[name] = answers[stage](name, data)
        with coordinator.over(stage):
            if stage is SparseStage.ADVERTISE:
                state, mail = sparse.server.advertise(spec, sent, entropy=os.urandom(32))
            elif stage is SparseStage.UNMASK:
                outcome = sparse.server.unmask(state, sent, threads=bench.size.threads)
            else:
                state, mail = getattr(sparse.server, stage.value)(state, sent)
    if not np.array_equal(outcome.sums[0], levels * len(outcome.survivors)):
        raise RuntimeError("the unmasked sum is not the plain sum")
    return outcome


def machine() -> dict[str, Any]:
    """Where it ran."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.secagg", description=__doc__)
    whole = lambda text: int(float(text))  # noqa: E731 - 86e6 is easier to read than 86000000
    parser.add_argument("--clients", type=int, nargs="+", default=[3, 5, 10, 32])
    parser.add_argument("--params", type=whole, nargs="+", default=[10**6, 10**7, 86 * 10**6])
    parser.add_argument("--ring-bits", type=int, default=24, choices=[16, 24, 32])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--flower-limit", type=whole, default=10**8, help="most clients x params to run Flower at")
    parser.add_argument("--sparse", type=int, nargs="*", default=[250, 1000], help="cohorts for the sparse graph")
    parser.add_argument("--sparse-params", type=whole, default=10**5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = []
    for row in rows(arguments):
        found.append(row)
        print(summary(row), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    sparse_rows = []
    for cohort in arguments.sparse:
        sparse_rows.append(measure_sparse(cohort, arguments.sparse_params, arguments.threads))
        print(sparse_summary(sparse_rows[-1]), file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps({"machine": machine(), "rows": found, "sparse": sparse_rows}, indent=1))


def summary(row: dict[str, Any]) -> str:
    """The row in one line."""
    flower = f", Flower {row['flower_over_ours']}x" if "flower_over_ours" in row else ""
    return (
        f"{row['clients']} clients, {row['params']:.0e} parameters, {row['dropped']} dropped: "
        f"mask {row['client_ms']['mask']} ms ({row['mask_over_floor']}x its floor{flower}), "
        f"{row['bytes_up_per_param']} B up each, coordinator {row['coordinator_over_floor']}x its floor"
        f", peak {row.get('coordinator_peak_vectors', '-')} vectors"
    )


def sparse_summary(row: dict[str, Any]) -> str:
    """The row in one line."""
    return (
        f"{row['clients']} clients, sparse graph of degree {row['graph']['degree']}, {row['params']:.0e} parameters, "
        f"{row['dropped']} dropped: client {sum(row['client_ms'].values()):.0f} ms in all, "
        f"coordinator {sum(row['coordinator_ms'].values()) / 1e3:.1f} s, whole simulation {row['seconds']} s"
    )


if __name__ == "__main__":
    main()
