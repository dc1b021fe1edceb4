"""Cases planted into copies of a coordinator's log: the transcript audit must find every one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from privfm.federation.records import RoundRecord
from privfm_attacks.coordinator_log import Log

__all__ = ["Planted", "imprinted", "planted"]


class Planted(NamedTuple):
    """What was planted, the check that must fail, and the copy."""

    case: str
    check: str
    log: Log


def planted(log: Log) -> Iterator[Planted]:
    """Yield a copy of the log for each case that there is room for: rounds need a record, imprints a model."""
    if log.records:
        yield from _in_records(log)
    for name, state in log.models.items():
        yield Planted(f"an imprint in {name}", "models", replace(log, models={**log.models, name: imprinted(state)}))


def _in_records(log: Log) -> Iterator[Planted]:
    last = log.records[-1]
    alone, others = last.survivors[0], last.survivors[1:]
    more = replace(last, round=last.round + 1, transcript="00" * 32, model_hash="11" * 32, mask_keys={})
    sybils = tuple(f"{name}-again" for name in others)

    def with_(record: RoundRecord, **changes: object) -> Log:
        return replace(log, records=(*log.records, record), **changes)  # type: ignore[arg-type]

    yield Planted("a sum of one", "sums", with_(replace(more, survivors=(alone,))))
    yield Planted("a round summed twice", "once", with_(replace(more, round=last.round, survivors=others)))
    yield Planted("masks used twice", "masks", with_(replace(more, transcript=last.transcript)))
    yield Planted("a cohort of strangers", "cohorts", with_(replace(more, survivors=(alone, *sybils))))
    yield Planted("one left out, without noise", "combinations", with_(replace(more, survivors=others), private=False))
    if last.mask_keys:
        yield Planted("a key used twice", "masks", with_(replace(more, mask_keys=last.mask_keys)))


def imprinted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a first layer whose rows all measure one thing, each against its own threshold."""
    key = next(name for name, value in state.items() if name.endswith(".weight") and value.dim() >= 2)
    weight = state[key]
    scales = torch.linspace(0.5, 1.5, len(weight)).reshape(-1, *(1,) * (weight.dim() - 1))
    return {**state, key: scales * torch.ones_like(weight[:1])}
