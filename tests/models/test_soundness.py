"""A model that couples images, keeps state or hides gradients is found by trying, whatever its layers are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.models.soundness import examine


class Toy(nn.Module):
    """Behaves like a backbone: a timm model in `timm`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.timm = body

    def forward(self, images: Tensor) -> Tensor:
        return self.timm(images)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images.flatten(1)).tanh())


class Centred(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(dim=0))


class Random(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + torch.randn_like(images))


class Counting(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        self.total += images.detach().sum()
        return super().forward(images)


class Transposed(Plain):
    """Its second layer sees features in dimension 0 and images in dimension 1."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = super().forward(images)
        return hidden + self.side(hidden.t().unsqueeze(-1)).sum(dim=-1).t()


class Bypassing(Plain):
    """Uses a layer's weight without calling the layer."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.linear(self.first(images.flatten(1)).tanh(), self.last.weight, self.last.bias)


class Summing(Plain):
    """Its last weight meets the images in an operation that says nothing about where the batch is."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images.flatten(1)).tanh()
        return torch.einsum("bi,oi->bo", hidden, self.last.weight) + self.last.bias


def test_a_weight_behind_its_layers_back_is_followed() -> None:
    assert examine(Toy(Bypassing()), SHAPE, "toy").unreachable == frozenset()


SHAPE = (1, 4, 4)


def test_a_plain_model_passes() -> None:
    assert examine(Toy(Plain()), SHAPE, "toy").unreachable == frozenset()


@pytest.mark.parametrize(
    ("body", "reason"),
    [(Centred, "other images of the batch"), (Random, "is random or keeps state"), (Counting, "timm.total changes")],
)
def test_unsound_models_are_refused(body: type[nn.Module], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        examine(Toy(body()), SHAPE, "toy")


@pytest.mark.parametrize(
    ("body", "names"), [(Transposed, {"timm.side.weight", "timm.side.bias"}), (Summing, {"timm.last.weight"})]
)
def test_gradients_that_cannot_be_collected_are_named(body: type[nn.Module], names: set[str]) -> None:
    assert examine(Toy(body()), SHAPE, "toy").unreachable == names


def test_a_model_of_such_gradients_is_refused() -> None:
    body = Summing()
    body.first.requires_grad_(False)
    body.first.weight.data = body.first.weight.data[:, :16]
    body.last = nn.Linear(8, 400)
    with pytest.raises(ModelError, match="most of its gradients"):
        examine(Toy(body), SHAPE, "toy")
