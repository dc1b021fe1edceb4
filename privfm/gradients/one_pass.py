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
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.gradients.shares import FACTORED, Rows, Share, joined

__all__ = ["OnePassHooks", "unit_shares"]


class OnePassHooks(GradSampleHooks):  # type: ignore[misc]
    """Collects, for every parameter, what each call of its layer contributes to the units' gradients.

    Rules that were registered with Opacus's `register_grad_sampler` are used for whatever does not factor; layers
    without a rule go through its functorch engine.

    Args:
        network: its rows (images, tokens, windows) lie along the first dimension, those of a unit next to each other.
        units: how many there are.
    """

    def __init__(self, network: nn.Module, units: int) -> None:
        self.units = units
        self.shares: defaultdict[nn.Parameter, list[Share]] = defaultdict(list)
        self._trainable = {parameter for parameter in network.parameters() if parameter.requires_grad}
        super().__init__(network, batch_first=True, loss_reduction="sum", strict=False)

    def add_hooks(
        self, *, loss_reduction: str = "sum", batch_first: bool = True, force_functorch: bool = False
    ) -> None:
        """Have each layer with trainable parameters collect."""
        self._handles = []
        for module in self.iterate_submodules(self._module):
            if type(module) not in self.GRAD_SAMPLERS:
                prepare_layer(module, batch_first=batch_first)
            self._handles.append(module.register_forward_hook(self.capture_activations_hook))
        self.enable_hooks()

    def remove_hooks(self) -> None:
        """Leave the network as it was."""
        super().remove_hooks()
        for handle in self._handles:
            handle.remove()

    def capture_activations_hook(self, module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> Tensor:
        """Keep what a layer sees, and wait for the gradient at what it gives."""
        if not self.hooks_enabled or not torch.is_grad_enabled():
            return output
        if not output.requires_grad:  # nothing before it trains
            output = output.detach().requires_grad_()
        collect = partial(self._collect, module, [tensor.detach() for tensor in inputs])
        output.register_hook(collect)  # type: ignore[no-untyped-call]
        return output

    def _collect(self, module: nn.Module, activations: list[Tensor], backprops: Tensor) -> None:
        backprops = backprops.detach().float()
        activations = [tensor.to(backprops.dtype) if tensor.is_floating_point() else tensor for tensor in activations]
        written_out = {parameter for parameter in module.parameters() if parameter in self._trainable}
        rule = FACTORED.get(type(module))
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
            samples = sampler(module, activations, backprops)
        for parameter in written_out & set(samples):
            self._write_out(parameter, samples[parameter])

    def _write_out(self, parameter: nn.Parameter, samples: Tensor) -> None:
        """Sum a parameter's rows over the images and views of a unit (the loss holds the mean's 1/views)."""
        if len(samples) % self.units:
            raise ModelError("a parameter has no gradient per image; freeze it or choose another backbone")
        self.shares[parameter].append(Rows(samples.reshape(self.units, -1, parameter.numel()).sum(dim=1)))

    def run(self, losses: Callable[[], Float[Tensor, " units"]]) -> dict[nn.Parameter, Share]:
        """One forward and one backward pass; what every parameter's calls contributed, joined."""
        with _switched(self._trainable, on=False):
            loss = losses()
            if loss.shape != (self.units,):
                raise ValueError(f"losses have shape {tuple(loss.shape)}; need a value for each of {self.units} units")
            if loss.requires_grad:
                torch.autograd.backward(loss.sum())
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


def unit_shares(network: nn.Module, losses: Callable[[], Float[Tensor, " units"]], units: int) -> list[Share]:
    """What every trainable parameter's unit gradients are made of, in `network.parameters()` order.

    Raises:
        ModelError: a parameter took no part, or its gradients cannot be told apart by unit.
        ValueError: the loss is not one value a unit.
    """
    hooks = OnePassHooks(network, units)
    try:
        shares = hooks.run(losses)
    finally:
        hooks.cleanup()
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if any(parameter not in shares for parameter in trainable):
        raise ModelError("a parameter has no gradient per image; freeze it or choose another backbone")
    return [shares[parameter] for parameter in trainable]
