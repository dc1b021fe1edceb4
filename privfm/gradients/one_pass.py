"""Hooks that make clipped sums from a single backward pass, on Opacus's grad-sample hooks and its registry of rules.

A layer's input and the gradient at its output are kept; per-unit norms come from them, and then one weighted
contraction makes the clipped sum. The backward pass itself computes no weight gradient: the parameters are switched
off while it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from opacus.utils.module_utils import has_trainable_params
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.gradients.loose import LooseParameters
from privfm.gradients.shares import FACTORED, Rows, Share, joined, precise

_PREPARED = "ft_compute_sample_grad"  # where Opacus keeps a layer's functorch form

__all__ = ["OnePassHooks", "collected_shares", "unit_shares"]


class OnePassHooks(GradSampleHooks):  # type: ignore[misc]
    """Collects, for every parameter, what each of its uses contributes to the units' gradients.

    Rules that were registered with Opacus's `register_grad_sampler` are used for whatever does not factor; layers
    without a rule go through its functorch engine; parameters that no layer looks after are followed.

    Args:
        network: its rows (images, tokens, windows) lie along the first dimension, those of a unit next to each other.
        units: how many there are.
        by_rule: False sends every layer through the functorch engine: slow, and a second opinion.
    """

    def __init__(self, network: nn.Module, units: int, *, by_rule: bool = True) -> None:
        self.units = units
        self.shares: defaultdict[nn.Parameter, list[Share]] = defaultdict(list)
        self._trainable = {parameter for parameter in network.parameters() if parameter.requires_grad}
        self._loose = LooseParameters(network, self._trainable, units)
        self._by_rule = by_rule
        self._collecting: list[bool] = []  # for every layer being called
        super().__init__(network, batch_first=True, loss_reduction="sum", strict=False)

    def add_hooks(
        self, *, loss_reduction: str = "sum", batch_first: bool = True, force_functorch: bool = False
    ) -> None:
        """Have each layer with trainable parameters collect."""
        self._handles = []
        for layer in self._module.modules():
            if self._looks_after_its_own(layer):
                if not (self._by_rule and type(layer) in self.GRAD_SAMPLERS) and not hasattr(layer, _PREPARED):
                    prepare_layer(layer, batch_first=batch_first)  # copies the layer, which has no hooks yet
                self._handles.append(layer.register_forward_pre_hook(self._enter))
                self._handles.append(layer.register_forward_hook(self.capture_activations_hook, always_call=True))
        self.enable_hooks()

    def _looks_after_its_own(self, module: nn.Module) -> bool:
        """Whether a module is a layer whose call explains the gradients of all its parameters."""
        if not has_trainable_params(module):
            return False
        whole = not any(True for child in module.children() for _ in child.parameters())
        return type(module) in self.GRAD_SAMPLERS or (whole and not any(True for _ in module.buffers()))

    def remove_hooks(self) -> None:
        """Leave the network as it was."""
        super().remove_hooks()
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        """A layer that sees constants alone is no layer of the batch: its parameters are followed instead."""
        self._collecting.append(not all(self._loose.is_constant(value) for value in inputs))
        if self._collecting[-1]:
            self._loose.enter_layer()

    def capture_activations_hook(self, module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        """Keep what a layer sees, and wait for the gradient at what it gives."""
        if not self._collecting.pop():
            return output
        self._loose.leave_layer()
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing before it trains
            output = output.detach().requires_grad_()
        collect = partial(self._collect, module, [tensor.detach() for tensor in inputs])
        output.register_hook(collect)  # type: ignore[no-untyped-call]
        return output

    def _collect(self, module: nn.Module, activations: list[Tensor], backprops: Tensor) -> None:
        backprops = precise(backprops.detach())
        activations = [tensor.to(backprops.dtype) if tensor.is_floating_point() else tensor for tensor in activations]
        written_out = {parameter for parameter in module.parameters() if parameter in self._trainable}
        rule = FACTORED.get(type(module)) if self._by_rule else None
        if rule is not None:
            weight, bias = module.weight, module.bias
            if weight in written_out:
                factors = rule(module, activations[0], backprops, self.units)
                self.shares[weight].append(factors.rows() if factors.cheaper_as_rows else factors)  # type: ignore[index]
            if bias in written_out:
                self._write_out(bias, _bias_rows(module, backprops))  # type: ignore[arg-type]
            return
        sampler = self.GRAD_SAMPLERS.get(type(module), ft_compute_per_sample_gradient)
        with _switched(written_out, on=True):
            samples = (sampler if self._by_rule else ft_compute_per_sample_gradient)(module, activations, backprops)
        for parameter in written_out & set(samples):
            self._write_out(parameter, samples[parameter])

    def _write_out(self, parameter: nn.Parameter, samples: Tensor) -> None:
        """Sum a parameter's rows over the images and views of a unit (the loss holds the mean's 1/views)."""
        if len(samples) % self.units:
            raise ModelError("a parameter has no gradient per image; freeze it or choose another backbone")
        self.shares[parameter].append(Rows(samples.reshape(self.units, -1, parameter.numel()).sum(dim=1)))

    def run(self, losses: Callable[[], Float[Tensor, " units"]]) -> dict[nn.Parameter, Share]:
        """One forward and one backward pass; what every parameter's uses contributed, joined."""
        with _switched(self._trainable, on=False):
            with self._loose:
                loss = losses()
            if loss.shape != (self.units,):
                raise ValueError(f"losses have shape {tuple(loss.shape)}; need a value for each of {self.units} units")
            if loss.requires_grad:
                torch.autograd.backward(loss.sum())
            for parameter, share in self._loose.shares():
                self.shares[parameter].append(share)
        return {parameter: joined(found) for parameter, found in self.shares.items()}


def _bias_rows(module: nn.Module, backprops: Tensor) -> Tensor:
    if isinstance(module, nn.Conv2d):
        return backprops.sum(dim=(2, 3))
    return backprops.reshape(len(backprops), -1, backprops.shape[-1]).sum(dim=1)


@contextmanager
def _switched(parameters: set[nn.Parameter], *, on: bool) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(on)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(not on)


def collected_shares(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int, *, by_rule: bool = True
) -> dict[nn.Parameter, Share]:
    """What unit gradients are made of, for every trainable parameter whose use was understood.

    Args:
        losses: one value a unit.
        by_rule: False asks functorch about every layer, as a second opinion.

    Raises:
        ModelError: a parameter's gradients cannot be told apart by unit.
        ValueError: the loss is not one value a unit.
    """
    hooks = OnePassHooks(network, units, by_rule=by_rule)
    try:
        return hooks.run(losses)
    finally:
        hooks.cleanup()


def unit_shares(
    network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int, *, by_rule: bool = True
) -> list[Share]:
    """`collected_shares` of all trainable parameters, in `network.parameters()` order.

    Raises:
        ModelError: as well where a parameter took no part.
    """
    shares = collected_shares(network, losses, units, by_rule=by_rule)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if any(parameter not in shares for parameter in trainable):
        raise ModelError("a parameter has no gradient per image; freeze it or choose another backbone")
    return [shares[parameter] for parameter in trainable]
