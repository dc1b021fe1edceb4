import pytest
import torch
from torch import nn

from privfm.federation.local_training import train_locally
from privfm.federation.network import trained, write_trained
from privfm.plan import OptimizerPlan


def test_the_update_is_the_sum_of_steps_and_the_start_stays_as_it_was() -> None:
    network, start = nn.Linear(2, 1), torch.tensor([1.0, 2.0, 3.0])
    plan = OptimizerPlan(name="sgd", learning_rate=0.5)
    update = train_locally(network, start, plan, 2, lambda step: torch.tensor([1.0, 0.0, float(step)]))
    torch.testing.assert_close(update, torch.tensor([-1.0, 0.0, -0.5]))
    torch.testing.assert_close(start, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(trained(network), start + update)


def test_adam_moves_by_its_learning_rate_at_most() -> None:
    network, start = nn.Linear(2, 1), torch.zeros(3)
    plan = OptimizerPlan(name="adam", learning_rate=0.01)
    update = train_locally(network, start, plan, 1, lambda step: torch.tensor([100.0, -1e-3, 5.0]))
    torch.testing.assert_close(update.abs(), torch.full((3,), 0.01), rtol=1e-3, atol=1e-5)


def test_frozen_parameters_stay() -> None:
    network = nn.Linear(2, 1)
    network.weight.requires_grad_(False)
    before = network.weight.clone()
    train_locally(network, torch.zeros(1), OptimizerPlan(name="sgd"), 1, lambda step: torch.ones(1))
    assert torch.equal(network.weight, before)


def test_a_vector_that_was_written_is_not_shared() -> None:
    network, vector = nn.Linear(2, 1), torch.zeros(3)
    write_trained(network, vector)
    with torch.no_grad():
        network.weight.add_(1.0)
    assert not vector.any()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_weight_decay_shrinks(name: str) -> None:
    network = nn.Linear(2, 1)
    plan = OptimizerPlan(name=name, learning_rate=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    update = train_locally(network, torch.ones(3), plan, 1, lambda step: torch.zeros(3))
    torch.testing.assert_close(update, torch.full((3,), -0.05))
