from __future__ import annotations

import math

import pytest
import torch

from privfm.objectives import contrast


def naive(first: torch.Tensor, second: torch.Tensor, temperature: float) -> float:
    views = [view / view.norm() for view in (*first, *second)]
    count, total = len(first), 0.0
    for place, view in enumerate(views):
        weights = {
            other: math.exp(float(view @ views[other]) / temperature) for other in range(2 * count) if other != place
        }
        total -= math.log(weights[(place + count) % (2 * count)] / sum(weights.values()))
    return total / (2 * count)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_agrees_with_a_plain_loop(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    first, second = (torch.randn(count, 3, generator=generator) for _ in range(2))
    assert contrast(first, second, 0.3).item() == pytest.approx(naive(first, second, 0.3), rel=1e-5)


def test_lengths_do_not_count() -> None:
    first, second = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(contrast(first, second, 0.2), contrast(7 * first, 0.1 * second, 0.2))
