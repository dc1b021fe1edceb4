"""Sums that leave their inputs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["OutOfPlace"]


class OutOfPlace(TorchFunctionMode):
    """Inside this context `x += y` and its kin bind a new tensor to x, and `x.add_(y)` returns one.

    Residual networks add their shortcut in place, to an output that a hook on the layer still needs; torch refuses
    that in the backward pass. Python binds whatever the operator returns, so a fresh sum means the same. Code that
    drops what `x.add_(y)` returns would compute something else; a backbone is compared with its plain forward pass.

    >>> x = torch.ones(2)
    >>> before = x
    >>> with OutOfPlace():
    ...     x += 1
    >>> before.tolist(), x.tolist()
    ([1.0, 1.0], [2.0, 2.0])
    """

    _FRESH: ClassVar[dict[Callable[..., Any], Callable[..., Tensor]]] = {
        Tensor.add_: torch.add,
        Tensor.sub_: torch.sub,
        Tensor.mul_: torch.mul,
        Tensor.div_: torch.div,
    }

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        fresh: Callable[..., Any] = self._FRESH.get(func, func)
        return fresh(*args, **(kwargs or {}))
