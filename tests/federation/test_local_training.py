import pytest
import torch
from torch import nn

from privfm.federation.local_training import train_locally
from privfm.federation.network import trained, write_trained
from privfm.federation.optimizers import FLOOR, NoisedGradient
from privfm.plan import OptimizerPlan


def exact(values: list[float]) -> NoisedGradient:
    return NoisedGradient(torch.tensor(values), 0.0)


def test_the_update_is_the_sum_of_steps_and_the_start_stays_as_it_was() -> None:
    network, start = nn.Linear(2, 1), torch.tensor([1.0, 2.0, 3.0])
    plan = OptimizerPlan(name="sgd", learning_rate=0.5)
    update = train_locally(network, start, plan, 2, lambda step: exact([1.0, 0.0, float(step)]))
    torch.testing.assert_close(update, torch.tensor([-1.0, 0.0, -0.5]))
    torch.testing.assert_close(start, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(trained(network), start + update)


def test_adam_moves_by_its_learning_rate_at_most() -> None:
    network, start = nn.Linear(2, 1), torch.zeros(3)
    plan = OptimizerPlan(name="adam", learning_rate=0.01)
    update = train_locally(network, start, plan, 1, lambda step: exact([100.0, -1e-3, 5.0]))
    torch.testing.assert_close(update.abs(), torch.full((3,), 0.01), rtol=1e-3, atol=1e-5)


def test_frozen_parameters_stay() -> None:
    network = nn.Linear(2, 1)
    network.weight.requires_grad_(False)
    before = network.weight.clone()
    train_locally(network, torch.zeros(1), OptimizerPlan(name="sgd"), 1, lambda step: exact([1.0]))
    assert torch.equal(network.weight, before)


def test_a_vector_that_was_written_is_not_shared() -> None:
    network, vector = nn.Linear(2, 1), torch.zeros(3)
    write_trained(network, vector)
    with torch.no_grad():
        network.weight.add_(1.0)
    assert not vector.any()


@pytest.mark.parametrize("name", ["sgd", "adam", "adam-bc"])
def test_weight_decay_shrinks(name: str) -> None:
    network = nn.Linear(2, 1)
    plan = OptimizerPlan(name=name, learning_rate=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    update = train_locally(network, torch.ones(3), plan, 1, lambda step: exact([0.0] * 3))
    torch.testing.assert_close(update, torch.full((3,), -0.05))


def noisy(signal: float, std: float, generator: torch.Generator) -> NoisedGradient:
    values = torch.randn(4000, generator=generator) * std
    values[:2000] += signal
    return NoisedGradient(values, std)


def test_bias_corrected_adam_finds_the_second_moment_behind_the_noise() -> None:
    """Where plain Adam divides a weak and a strong signal by the same noise, it divides each by its own size."""
    generator, network = torch.Generator().manual_seed(0), nn.Linear(4000, 1, bias=False)
    plan = OptimizerPlan(name="adam-bc", learning_rate=1e-3)
    update = train_locally(network, torch.zeros(4000), plan, 400, lambda step: noisy(3.0, 1.0, generator))
    per_step = update[:2000].mean() / 400
    torch.testing.assert_close(per_step, torch.tensor(-1e-3), rtol=0.05, atol=0.0)
    plain = plan.model_copy(update={"name": "adam"})
    update = train_locally(network, torch.zeros(4000), plain, 400, lambda step: noisy(3.0, 1.0, generator))
    assert update[:2000].mean() / 400 > -0.97e-3


def test_bias_corrected_adam_takes_no_longer_steps_than_the_clamp_is_planned_for() -> None:
    plan, network = OptimizerPlan(name="adam-bc", learning_rate=1.0), nn.Linear(3, 1, bias=False)
    update = train_locally(
        network, torch.zeros(3), plan, 1, lambda step: NoisedGradient(torch.tensor([0.5, -1.0, 9.0]), 1.0)
    )
    torch.testing.assert_close(update[:2], torch.tensor([-0.5, 1.0]) / FLOOR**0.5)
    torch.testing.assert_close(update[2], -torch.tensor(9.0 / 80**0.5))
    assert update.abs().max() <= 9.0 / FLOOR**0.5
