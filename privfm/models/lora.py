"""Low-rank adapters: a backbone that was trained in public learns more with few numbers, and so with little noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from privfm.errors import PlanError
from privfm.models.backbone import Backbone

__all__ = ["LowRankLinear", "adapter_names", "add_adapters", "load_without_adapters", "merged_state"]


class LowRankLinear(nn.Module):
    """A linear layer plus a product of two thin ones, which starts at zero.

    The layer's own weight and bias keep their names. `up(down(x))` is scaled by 1.

    Source: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", section 4.1.

    Args:
        base: whose weight and bias are taken over.
        rank: r, width of what is between the two.
        generator: of the first, which is public.
    """

    def __init__(self, base: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.down: nn.Linear = skip_init(nn.Linear, base.in_features, rank, bias=False)  # type: ignore[no-untyped-call]
        self.up: nn.Linear = skip_init(nn.Linear, rank, base.out_features, bias=False)  # type: ignore[no-untyped-call]
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5, generator=generator)
        nn.init.zeros_(self.up.weight)

    def forward(self, values: Tensor) -> Tensor:
        adapted: Tensor = self.up(self.down(values))
        return functional.linear(values, self.weight, self.bias) + adapted

    def merged(self) -> Tensor:
        """The weight of the one linear layer that computes the same."""
        merged: Tensor = self.weight + self.up.weight @ self.down.weight
        return merged


def add_adapters(backbone: Backbone, rank: int, seed: int) -> None:
    """Give every linear layer that can train an adapter; the same seed gives the same start, which changes nothing.

    Raises:
        PlanError: the backbone has no such layer.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [
        (parent, name, child)
        for path, parent in backbone.named_modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and f"{path}.{name}.weight" not in backbone.fixed
    ]
    if not found:
        raise PlanError(f"trainable = lora: {backbone.spec.name} has no linear layers; use last-K or norm-bias")
    for parent, name, child in found:
        setattr(parent, name, LowRankLinear(child, rank, generator))


def adapter_names(network: nn.Module) -> set[str]:
    """Names of the adapters' parameters."""
    adapted = [name for name, module in network.named_modules() if isinstance(module, LowRankLinear)]
    return {f"{name}.{half}.weight" for name in adapted for half in ("down", "up")}


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network without adapters that computes the same."""
    own, state = adapter_names(network), network.state_dict()
    merged = {
        f"{name}.weight": module.merged().detach()
        for name, module in network.named_modules()
        if isinstance(module, LowRankLinear)
    }
    return {name: merged.get(name, value) for name, value in state.items() if name not in own}


def load_without_adapters(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state of a network without adapters, strictly; adapters stay as they are.

    Raises:
        RuntimeError: a name or shape does not fit.
    """
    current = network.state_dict()
    network.load_state_dict({**state, **{name: current[name] for name in adapter_names(network)}}, strict=True)
