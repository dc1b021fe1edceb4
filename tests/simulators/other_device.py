"""A second device that is only pretended: it computes on the CPU, and refuses to be mixed with it as a GPU does.

Its tensors say that they are on the device named "meta", the one beside the CPU that every build of torch has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["ELSEWHERE", "Elsewhere", "other_device"]

ELSEWHERE, HERE = torch.device("meta"), torch.device("cpu")

_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class Elsewhere(Tensor):
    """A tensor on the other device; `held` is what it holds."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
            requires_grad=held.requires_grad,
            dispatch_sizes_strides_policy="sizes",  # asked each time, for some operations change them in place
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.held!r})"

    def tolist(self) -> Any:
        """As of any tensor: torch refuses that for what it does not know."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives, where its arguments are; moved if that is what it does."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    away = any(isinstance(value, Elsewhere) for value in tensors)
    if away and func not in _MOVES and any(not isinstance(value, Elsewhere) and value.dim() for value in tensors):
        raise RuntimeError(f"{func}: arguments are on two devices")
    target = kwargs.get("device")
    if target is not None:
        away, kwargs = torch.device(target) == ELSEWHERE, {**kwargs, "device": HERE}
    inner = tree_map_only(Elsewhere, lambda value: value.held, (args, kwargs))
    out = func(*inner[0], **inner[1])
    if func._schema.name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    return tree_map_only(Tensor, Elsewhere, out) if away else out


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[torch.device]:
    """The other device, for as long as the block lasts."""
    with _Factories():
        yield ELSEWHERE
