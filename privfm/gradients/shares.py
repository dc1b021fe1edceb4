"""What a layer's call contributes to every unit's gradient, in the form in which norms and clipped sums cost least.

Source: Bu et al. 2022, "Differentially private optimization on large model at small cost" (arXiv 2210.00038).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FACTORED", "Factors", "Rows", "Share", "joined", "precise"]


def precise(values: Tensor) -> Tensor:
    """In single precision at least: norms and sums of half-precision numbers would be off by per cents."""
    return values if values.dtype == torch.float64 else values.float()


@dataclass(frozen=True)
class Rows:
    """Gradients written out, one row a unit."""

    values: Float[Tensor, "units numbers"]

    def squared_norms(self) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
        """Of each unit's row, in double precision, and how far off they may be: not at all."""
        norms: Tensor = torch.linalg.vector_norm(self.values, dim=1, dtype=torch.float64)
        return norms.square(), torch.zeros_like(norms)

    def weighted_sum(self, factors: Float[Tensor, " units"]) -> Float[Tensor, " numbers"]:
        """The sum of the rows, each times its factor."""
        return factors @ self.values

    def rows(self, chosen: Bool[Tensor, " units"] | None = None) -> Rows:
        """Those of the chosen units."""
        return self if chosen is None else Rows(self.values[chosen])

    def only(self, finite: Tensor) -> Rows:
        """The same with every other unit's row zero."""
        return Rows(torch.where(finite[:, None], self.values, 0.0))


@dataclass(frozen=True)
class Factors:
    """A weight matrix's gradients as what they are products of: unit u's block is `outputs[u].T @ inputs[u]`.

    Args:
        inputs: what the layer saw, for each token and each group of channels.
        outputs: the loss's gradient with respect to what the layer gave.
    """

    inputs: Float[Tensor, "units groups tokens seen"]
    outputs: Float[Tensor, "units groups tokens given"]

    @property
    def cheaper_as_rows(self) -> bool:
        """Whether a unit's gradient is smaller written out than what it is a product of: then it is quicker too."""
        _, _, tokens, seen = self.inputs.shape
        given = self.outputs.shape[3]
        return seen * given <= tokens * (seen + given)

    def squared_norms(self) -> tuple[Float[Tensor, " units"], Float[Tensor, " units"]]:
        """By the ghost identity: over pairs of tokens, products of inputs times products of outputs. And how far off.

        Where tokens cancel, what is left may be less than the rounding of what cancelled, and a model can be made to
        cancel. The second value bounds that: rounding of the two Gram matrices against the tokens' lengths, and what
        falls below the smallest numbers.
        """
        seen, given = self.inputs @ self.inputs.mT, self.outputs @ self.outputs.mT
        inputs, outputs = (gram.diagonal(dim1=2, dim2=3).double().clamp(min=0.0).sqrt() for gram in (seen, given))
        squared = seen.mul_(given).sum(dim=(1, 2, 3), dtype=torch.float64).clamp_(min=0.0)
        numbers, limits = self.inputs.shape[3] + self.outputs.shape[3], torch.finfo(self.inputs.dtype)
        rounding = 4 * limits.eps * numbers**0.5 * (inputs * outputs).sum(dim=2).square()
        underflow = limits.tiny * numbers * (inputs.sum(dim=2).square() + outputs.sum(dim=2).square())
        return squared, (rounding + underflow).sum(dim=1)

    def weighted_sum(self, factors: Float[Tensor, " units"]) -> Float[Tensor, " numbers"]:
        """One contraction over units and tokens, as in an ordinary backward pass."""
        weights = factors[:, None, None, None]
        narrow = self.inputs.shape[3] < self.outputs.shape[3]
        inputs, outputs = (self.inputs * weights, self.outputs) if narrow else (self.inputs, self.outputs * weights)
        return (_by_group(outputs).mT @ _by_group(inputs)).flatten()

    def rows(self, chosen: Bool[Tensor, " units"] | None = None) -> Rows:
        """Written out, for all units together or the chosen ones each by itself.

        How many are chosen depends on other units, and how a batch of products is rounded may depend on how many it
        has: what one unit adds must not.
        """
        if chosen is None:
            return Rows((self.outputs.mT @ self.inputs).flatten(1))
        alone = ([unit] for unit in chosen.nonzero().flatten().tolist())
        return Rows(torch.cat([(self.outputs[unit].mT @ self.inputs[unit]).flatten(1) for unit in alone]))

    def only(self, finite: Tensor) -> Factors:
        """The same with every other unit's inputs and outputs zero: 0 * NaN would be NaN."""
        keep = finite[:, None, None, None]
        return Factors(torch.where(keep, self.inputs, 0.0), torch.where(keep, self.outputs, 0.0))


def _by_group(tokens: Float[Tensor, "units groups tokens channels"]) -> Float[Tensor, "*groups rows channels"]:
    """All units' tokens as one matrix for each group; without a copy where there is one group."""
    return tokens.flatten(0, 2) if tokens.shape[1] == 1 else tokens.transpose(0, 1).flatten(1, 2)


Share = Rows | Factors


def joined(shares: Sequence[Share]) -> Share:
    """Several calls' contributions to one parameter as one.

    Factors are laid end to end along tokens: adding the norms of the calls instead would let too much through.
    """
    if len(shares) == 1:
        return shares[0]
    factors = [share for share in shares if isinstance(share, Factors)]
    if len(factors) < len(shares):
        return Rows(torch.stack([share.rows().values for share in shares]).sum(dim=0))
    return Factors(torch.cat([f.inputs for f in factors], dim=2), torch.cat([f.outputs for f in factors], dim=2))


def _linear(layer: nn.Linear, inputs: Tensor, outputs: Tensor, units: int) -> Factors:
    return Factors(inputs.reshape(units, 1, -1, layer.in_features), outputs.reshape(units, 1, -1, layer.out_features))


def _conv2d(layer: nn.Conv2d, images: Tensor, outputs: Tensor, units: int) -> Factors:
    """Every output position is a token that saw a patch."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    columns = functional.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
    return Factors(_tokens(columns, layer.groups, units), _tokens(outputs.flatten(2), layer.groups, units))


def _tokens(maps: Float[Tensor, "images channels positions"], groups: int, units: int) -> Tensor:
    grouped = maps.reshape(units, len(maps) // units, groups, -1, maps.shape[-1])
    return grouped.permute(0, 2, 1, 4, 3).flatten(2, 3)


#: How the weight's gradient factors, by exact type of layer; every other parameter's is written out.
FACTORED: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, int], Factors]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
}
