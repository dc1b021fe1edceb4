"""From gradients back to images: in closed form through position embeddings, and by optimisation.

A token of a vision transformer is a patch times the embedding's weight plus its position. So the gradient of a position
is the gradient g_t at that token, and the gradient of the weight is the sum of g_t x_t^T over the patches x_t: linear
equations for the patches, as many for each pixel as tokens have features. They hold for a sum of steps of plain
gradient descent on one view just as well, whatever the weights did meanwhile.

Source: Lu et al. 2022, "APRIL: finding the Achilles' heel on privacy for vision transformers" (arXiv 2112.14087),
section 4; Geiping et al. 2020, "Inverting gradients" (arXiv 2003.14053), sections 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

__all__ = ["invert", "psnr", "solve_patches"]

VARIANCES = torch.logspace(-17, 6, 93, dtype=torch.float64)
"""Of what the equations leave unexplained, over the largest squared strength of a direction; the likeliest is taken."""

DECAYS = (3 / 8, 5 / 8, 7 / 8)
"""When the step shrinks to a tenth, as shares of all iterations. Source: Geiping et al. 2020, appendix."""


def psnr(rebuilt: Float[Tensor, "*shape"], original: Float[Tensor, "*shape"], where: Bool[Tensor, "*shape"]) -> float:
    """Return the peak signal-to-noise ratio, in dB, over some of the pixels.

    The peak is the original's own range, from its darkest pixel to its brightest: a dull image is no easier.

    >>> image = torch.tensor([0.0, 1.0, 0.5])
    >>> round(psnr(image + 0.1, image, torch.ones(3, dtype=torch.bool)), 3)
    20.0
    """
    error = float((rebuilt[where].double() - original[where].double()).square().mean())
    peak = float(original.max() - original.min())
    return 20 * math.log10(max(peak, 1e-12)) - 10 * math.log10(max(error, 1e-30))


def solve_patches(
    positions: Float[Tensor, "seen width"],
    weights: Float[Tensor, "width pixels"],
    prior: Float[Tensor, "seen pixels"],
    noise_std: float = 0.0,
) -> Float[Tensor, "seen pixels"]:
    """Return the likeliest patches, when they scatter about `prior` with variance 1.

    Directions of the equations that are no stronger than noise alone would be say nothing, and leave `prior` as it is.
    What else the equations leave unexplained is of unknown strength: the one under which they are likeliest.

    Args:
        positions: gradients of the position embedding, or what moved it, at the tokens that were seen.
        weights: the same of the patch embedding's weight, on the same scale.
        prior: what patches look like on average, standardised.
        noise_std: of the noise that is known to be in every number.
    """
    tokens, known, given = positions.double().T, prior.double(), weights.double()
    bases, strengths, directions = torch.linalg.svd(tokens, full_matrices=False)
    edge = noise_std * (math.sqrt(len(tokens)) + math.sqrt(tokens.shape[1]))  # the largest strength of noise alone
    products = (strengths.square() - edge**2).clamp(min=0)
    if noise_std > 0:
        unexplained = torch.tensor(noise_std**2 * (1 + tokens.shape[1]), dtype=torch.float64)
    else:
        unexplained = _likeliest_variance(given - tokens @ known, bases, strengths)
    pulled = strengths[:, None] * (bases.T @ given) - products[:, None] * (directions @ known)
    shrunk = products / (products.square() + strengths.square() * unexplained).clamp(min=1e-300)
    solved: Tensor = known + directions.T @ (shrunk[:, None] * pulled)
    return solved.to(prior)


def _likeliest_variance(
    left: Float[Tensor, "width pixels"], bases: Float[Tensor, "width seen"], strengths: Float[Tensor, " seen"]
) -> Float[Tensor, ""]:
    """Return the variance of what equations leave unexplained under which they are likeliest (empirical Bayes)."""
    along = bases.T @ left
    beyond = (left.square().sum() - along.square().sum()).clamp(min=0)
    variances = VARIANCES * strengths.max().square().clamp(min=1e-280)
    spread = strengths.square() + variances[:, None]  # [variances, directions]
    surprise = left.shape[1] * (spread.log().sum(dim=1) + (len(left) - len(strengths)) * variances.log())
    surprise += (along.square().sum(dim=1) / spread).sum(dim=1) + beyond / variances
    return variances[surprise.argmin()]


def invert(
    gradient_of: Callable[[Float[Tensor, "1 c h w"]], Float[Tensor, " parameters"]],
    target: Float[Tensor, " parameters"],
    start: Float[Tensor, "1 c h w"],
    *,
    iterations: int,
    step: float = 0.03,
    smoothness: float = 1e-4,
) -> Float[Tensor, "1 c h w"]:
    """Return an image whose gradient points where `target` does: cosine distance and total variation, signed Adam.

    It is the best of all that were come by.

    Args:
        gradient_of: differentiable; views, masks and weights are known to the attacker.
        start: what images look like on average.
        iterations: two backward passes each.
        step: at first, in standard deviations of the image.
        smoothness: weight of the total variation.
    """
    guess = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], step)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(iterations * share) for share in DECAYS])
    best, least = start, math.inf
    for _ in range(iterations):
        distance = 1 - functional.cosine_similarity(gradient_of(guess), target, dim=0)
        cost = distance + smoothness * _total_variation(guess)
        if float(cost.detach()) < least:
            best, least = guess.detach().clone(), float(cost.detach())
        guess.grad = torch.autograd.grad(cost, guess)[0].sign()
        optimizer.step()
        decay.step()
    return best


def _total_variation(images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of neighbours."""
    across: Tensor = images.diff(dim=3).abs().mean()
    return across + images.diff(dim=2).abs().mean()
