"""Objectives that compare glances, against plain loops over glances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from privfm.models import BackboneSpec, build_backbone
from privfm.objectives import Byol, Dino, Network, SimClr, SimSiam
from privfm.objectives.embedding import EmbeddingNetwork, _whitening

VIT = BackboneSpec("test_vit", patch_size=8, depth=1)
PUBLIC = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(9))
VIEWS = torch.randn(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(3))
SMALL = {"width": 8, "hidden": 16}
ALL = (
    SimSiam(public=6, **SMALL),
    Byol(public=6, **SMALL),
    Dino(public=6, prototypes=5, **SMALL),
    SimClr(negatives=6, **SMALL),
)
names = pytest.mark.parametrize("objective", ALL, ids=lambda objective: objective.name)
Embedding = SimSiam | Byol | Dino | SimClr


def built(objective: Embedding, *, aside: float = 0.0) -> EmbeddingNetwork:
    """A network whose weights are `aside` of those that it last released."""
    network = objective.build(build_backbone(VIT, seed=0), 0, PUBLIC)
    assert isinstance(network, EmbeddingNetwork)
    with torch.no_grad():
        for value in network.parameters():
            value += aside * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    return network


def rngs() -> list[np.random.Generator]:
    return [np.random.default_rng(0), np.random.default_rng(1)]


def glances(objective: Embedding) -> Tensor:
    return objective._glances.draw(VIEWS, rngs())


def by_unit(costs: list[float]) -> Tensor:
    """Means over each unit's two views of two glances."""
    return torch.tensor(costs).reshape(2, 4).mean(dim=1)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_simclr_agrees_with_a_loop() -> None:
    objective = SimClr(negatives=6, temperature=0.3, **SMALL)
    network = built(objective)
    with torch.no_grad():
        embedded, public = network(glances(objective)), network(network.public)
        deviation = public.std(0, correction=0) + 1e-3
        embedded, public = (embedded - public.mean(0)) / deviation, (public - public.mean(0)) / deviation
        costs = []
        for place, mine in enumerate(embedded):
            alike = math.exp(cosine(mine, embedded[place ^ 1]) / 0.3)
            unlike = sum(math.exp(cosine(mine, other) / 0.3) for other in public)
            costs.append(-math.log(alike / (alike + unlike)))
        torch.testing.assert_close(objective.unit_losses(network, VIEWS, rngs()), by_unit(costs), rtol=1e-4, atol=1e-4)


def test_dino_agrees_with_a_loop() -> None:
    objective = Dino(public=6, prototypes=5, temperature=0.4, teacher_temperature=0.2, **SMALL)
    released, network = built(objective), built(objective, aside=0.05)
    with torch.no_grad():
        seen = glances(objective)
        taught, said, centre = released(seen), network(seen), released(released.public).mean(0)
        costs = []
        for place in range(len(seen)):
            wanted = ((taught[place ^ 1] - centre) / 0.2).softmax(0)
            costs.append(-float(sum(wanted * (said[place] / 0.4).log_softmax(0))))
        torch.testing.assert_close(objective.unit_losses(network, VIEWS, rngs()), by_unit(costs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ALL[:2], ids=["simsiam", "byol"])
def test_siamese_objectives_agree_with_a_loop(objective: SimSiam | Byol) -> None:
    released, network = built(objective), built(objective, aside=0.05)
    with torch.no_grad():
        seen, public = glances(objective), released(released.public)
        said = network(seen)
        target = released(seen) if objective.name == "byol" else said
        target = (target - public.mean(0)) / (public.std(0, correction=0) + 1e-3)
        predicted = network.get_submodule("predict")(said)
        costs = [1 - cosine(predicted[place], target[place ^ 1]) for place in range(len(seen))]
        torch.testing.assert_close(objective.unit_losses(network, VIEWS, rngs()), by_unit(costs), rtol=1e-4, atol=1e-4)


def test_whitening_evens_out_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + 3
    mean, directions = _whitening(features)
    white = (features - mean) @ directions
    torch.testing.assert_close(white.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    standardised = (features - features.mean(0)) / features.std(0, correction=0)
    before, after = (torch.linalg.eigvalsh(rows.T @ rows / 500) for rows in (standardised, white))
    torch.testing.assert_close(after, before / (before + 0.05), rtol=0.02, atol=1e-3)


def test_a_direction_in_which_nothing_varies_stays_small() -> None:
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    features[:, 2] = 1.0
    mean, directions = _whitening(features)
    assert torch.isfinite(directions).all()
    assert ((features - mean) @ directions).abs().max() < 10


@names
def test_too_few_public_images_are_refused(objective: Embedding) -> None:
    for public in (None, PUBLIC[:5]):
        with pytest.raises(ValueError, match=r"public=[05] images; this objective compares with 6"):
            objective.build(build_backbone(VIT, seed=0), 0, public)


@names
def test_networks_of_others_are_refused(objective: Embedding) -> None:
    with pytest.raises(TypeError, match="Network"):
        objective.unit_losses(Network(build_backbone(VIT, seed=0)), VIEWS, rngs())


@names
def test_training_lowers_the_loss_and_keeps_images_apart(objective: Embedding) -> None:
    network = built(objective)
    waves = torch.sin(torch.linspace(0, 12, 32)[None, :] * torch.linspace(0.5, 2, 8)[:, None])
    images = waves[:, None, None, None, :].expand(8, 1, 1, 32, 32)
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=2e-3)
    losses = []
    for step in range(40):
        draws = [np.random.default_rng([step, unit]) for unit in range(8)]
        loss = objective.unit_losses(network, images, draws).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    with torch.no_grad():
        features = network.backbone.features(images[:, 0])
    assert features.std(dim=0).mean() > 0.01
