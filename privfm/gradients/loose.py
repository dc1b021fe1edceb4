"""Parameters that meet the batch outside of a layer: tokens, positions, layer scales, tables of relative positions.

No layer's hook sees them. They are followed instead from function to function, through whatever is computed of them
alone (indexing, a cat of biases, a small network over constant coordinates), up to where the result first meets the
batch. There it is given one copy a row, whose gradient is the row's own; and what a unit's copies say is pulled back to
the parameters, for all units at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from privfm.gradients.shares import Factors, Rows, Share, precise

__all__ = ["LooseParameters"]

Value = TypeVar("Value")
_ByTensor = MutableMapping[Tensor, Value]

_SPREADING = {Tensor.expand, Tensor.expand_as, Tensor.repeat, torch.broadcast_to, Tensor.broadcast_to}
_BROADCASTING = {
    torch.add, torch.sub, torch.mul, torch.div, torch.true_divide, torch.where,
    Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__,
    Tensor.sub, Tensor.__sub__, Tensor.__rsub__, Tensor.__isub__,
    Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__, Tensor.multiply, torch.multiply,
    Tensor.div, Tensor.__truediv__, Tensor.__itruediv__, Tensor.true_divide,
    torch.cat, torch.concat, functional.scaled_dot_product_attention,
}  # fmt: skip


class LooseParameters(TorchFunctionMode):
    """Inside this context, collects what loose parameters contribute to units' gradients.

    A use that is not understood collects nothing, so that the parameter's rows do not add up to its gradient; who
    relies on them has to check that once (`check_clippable`).

    Args:
        network: its parameters and buffers are constants; everything computed of constants alone is one too.
        trainable: the parameters that are followed, wherever a layer does not look after them.
        units: how many units a batch has; its rows lie along dimension 0, those of a unit next to each other.
    """

    def __init__(self, network: nn.Module, trainable: Iterable[nn.Parameter], units: int) -> None:
        super().__init__()
        self._units = units
        self._stand_ins: _ByTensor[Tensor] = _by_tensor({p: p.detach().requires_grad_() for p in trainable})
        self._constants: _ByTensor[None] = _by_tensor(dict.fromkeys((*network.parameters(), *network.buffers())))
        self._bases: _ByTensor[Tensor] = _by_tensor({})  # of a constant spread over rows: the constant before
        self._met: dict[int, tuple[Tensor, list[Share]]] = {}
        self._layers = 0

    def enter_layer(self) -> None:
        """From here to `leave_layer` a layer is called whose hook collects for its parameters."""
        self._layers += 1

    def leave_layer(self) -> None:
        """The call has ended."""
        self._layers -= 1

    def is_constant(self, value: Any) -> bool:
        """Whether a value is the same for every image."""
        return not isinstance(value, Tensor) or value in self._constants

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._layers or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        if tensors and all(tensor in self._constants for tensor in tensors):
            return self._of_constants(func, args, kwargs)
        if not any(self._is_followed(tensor) for tensor in tensors):
            return func(*args, **kwargs)
        return self._meet(func, args, kwargs)

    def _is_followed(self, tensor: Tensor) -> bool:
        return tensor in self._stand_ins or (tensor in self._constants and tensor.requires_grad)

    def _stand_in(self, value: Any) -> Any:
        return self._stand_ins.get(value, value) if isinstance(value, Tensor) else value

    def _of_constants(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*_mapped(self._stand_in, args), **{key: _mapped(self._stand_in, v) for key, v in kwargs.items()})
        for value in _flat((result,)):
            if isinstance(value, Tensor):
                self._constants[value] = None
        if func in _SPREADING and args[0].dim() == result.dim() and len(args[0]) == 1 < len(result):
            self._bases[result] = self._bases.get(args[0], self._stand_in(args[0]))
        return result

    def _meet(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is functional.linear:
            return self._linear(*args, **kwargs)
        if func not in _BROADCASTING:
            return func(*args, **kwargs)
        batched = max(
            (v for v in _flat((*args, *kwargs.values())) if not self.is_constant(v)), key=lambda tensor: tensor.dim()
        )

        def copied(value: Any) -> Any:
            return self._copied(value, batched) if isinstance(value, Tensor) and self._is_followed(value) else value

        return func(*_mapped(copied, args), **{key: _mapped(copied, value) for key, value in kwargs.items()})

    def _copied(self, value: Tensor, batched: Tensor) -> Tensor:
        """A copy of a constant for every row of a batch, each with a gradient of its own."""
        base = self._bases.get(value, self._stand_in(value))
        if base.dim() > batched.dim() or (base.dim() == batched.dim() and len(base) != 1):
            return value  # not understood
        rows, padded = len(batched), base.detach()[(None,) * (batched.dim() - base.dim())]
        copies = padded.expand(rows, *padded.shape[1:]).requires_grad_()
        copies.register_hook(lambda gradient: self._collect(base, self._per_unit(gradient)))
        return cast(Tensor, copies)

    def _linear(self, batched: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A layer's weight used behind its back, or one put together of several parameters."""
        if self.is_constant(batched):
            return functional.linear(batched, weight, bias)
        output = functional.linear(batched, weight.detach())
        if self._is_followed(weight):
            seen, base = batched.detach(), self._stand_in(weight)
            output = output if output.requires_grad else output.requires_grad_()

            def collect(gradient: Tensor) -> None:
                pairs = [precise(tensor).reshape(self._units, 1, -1, tensor.shape[-1]) for tensor in (seen, gradient)]
                self._collect(base, Factors(*pairs))

            output.register_hook(collect)  # type: ignore[no-untyped-call]
        if bias is None:
            return output
        return output + (self._copied(bias, output) if self._is_followed(bias) else bias)

    def _per_unit(self, gradient: Tensor) -> Rows:
        return Rows(precise(gradient).reshape(self._units, len(gradient) // self._units, -1).sum(dim=1))

    def _collect(self, base: Tensor, share: Share) -> None:
        self._met.setdefault(id(base), (base, []))[1].append(share)

    def shares(self) -> Iterator[tuple[nn.Parameter, Share]]:
        """What was collected, pulled back to the parameters."""
        stand_ins = dict(self._stand_ins.items())
        leaves = {id(leaf): cast(nn.Parameter, parameter) for parameter, leaf in stand_ins.items()}
        for base, found in self._met.values():
            if id(base) in leaves:
                yield from ((leaves[id(base)], share) for share in found)
                continue
            gradients = torch.stack([share.rows().values for share in found]).sum(dim=0)
            pulled = torch.autograd.grad(
                base, list(stand_ins.values()), gradients.reshape(-1, *base.shape).to(base.dtype),
                retain_graph=True, allow_unused=True, is_grads_batched=True,
            )  # fmt: skip
            for parameter, rows in zip(stand_ins, pulled, strict=True):
                if rows is not None:
                    yield cast(nn.Parameter, parameter), Rows(rows.flatten(1))


def _by_tensor(values: dict[Any, Value]) -> _ByTensor[Value]:
    return cast(_ByTensor[Value], WeakTensorKeyDictionary(values))


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, each) for each in value)
    return change(value)
