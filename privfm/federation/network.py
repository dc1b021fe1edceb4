"""The network that a plan describes: built, initialised, flattened, stored and read back."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from privfm.errors import PlanError, RunError
from privfm.federation.building import build_network
from privfm.files import write_atomic
from privfm.models import DEFAULT_BACKBONE, BackboneSpec, set_trainable
from privfm.objectives import Network, Objective, get_objective
from privfm.plan import Plan, stored_plan

__all__ = [
    "Learner",
    "backbone_spec",
    "build_learner",
    "load_network",
    "network_hash",
    "save_network",
    "trained",
    "write_trained",
]


class Learner(NamedTuple):
    """A network, the objective that trains it, and the plan that describes both."""

    network: Network
    objective: Objective
    plan: Plan


def backbone_spec(plan: Plan) -> BackboneSpec:
    """Return the backbone that the plan names, or the default one, at the plan's image size.

    Raises:
        PlanError: patches do not cover an image.
    """
    model, data = plan.model, plan.data
    named = BackboneSpec(model.backbone) if model.backbone is not None else _default_spec(data.image_size)
    patch = model.patch_size or named.patch_size
    if patch is not None and data.image_size % patch:
        raise PlanError(
            f"data.image_size: {data.image_size} is no multiple of the patch size {patch}; change one of them"
        )
    return BackboneSpec(
        name=named.name,
        image_size=data.image_size,
        patch_size=patch,
        channels=data.channels,
        width=model.width or named.width,
        depth=model.depth or named.depth,
        heads=model.heads or named.heads,
    )


def _default_spec(image_size: int) -> BackboneSpec:
    """Return the default backbone with as many patches a side at any image size."""
    patch = DEFAULT_BACKBONE.patch_size or 1
    return replace(DEFAULT_BACKBONE, patch_size=max(1, image_size * patch // DEFAULT_BACKBONE.image_size))


def build_learner(plan: Plan) -> Learner:
    """Return the plan's network with freshly drawn weights (seeded, public), its trainable parts marked.

    Raises:
        ModelError: the backbone is unknown or cannot be made sound.
        PlanError: the objective or the trainable part does not exist.
    """
    objective = get_objective(plan.objective.name, **plan.objective.options)
    rank = plan.model.lora_rank if plan.model.trainable == "lora" else None
    network = build_network(backbone_spec(plan), objective, plan.seed, rank)
    # A head that a public start trained may stay as it is; any other has learnt nothing yet.
    set_trainable(network, plan.model.trainable, train_head=None if plan.model.init == "public" else True)
    return Learner(network, objective, plan)


def trained(network: nn.Module) -> Float[Tensor, " parameters"]:
    """Return the trainable parameters as one float32 vector on the CPU."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return parameters_to_vector(parameters).detach().float().cpu()


def weights_at(network: nn.Module, vector: Float[Tensor, " parameters"]) -> dict[str, Tensor]:
    """Return the network's parameters by name, the trainable ones as `vector` has them; the network stays as it is."""
    weights, start = {}, 0
    for name, parameter in network.named_parameters():
        weights[name] = parameter.detach()
        if parameter.requires_grad:
            weights[name] = vector[start : start + parameter.numel()].reshape(parameter.shape)
            start += parameter.numel()
    return weights


def write_trained(network: nn.Module, vector: Float[Tensor, " parameters"], *, refresh: bool = True) -> None:
    """Put a copy of `vector` into the trainable parameters, and let a teacher catch up unless told otherwise.

    Preconditions: `vector` is public, or made of noised gradients alone: an objective's teacher, centre and negatives
    are taken of it. This, and reading a stored model, are the only ways in which they change.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Without the copy the parameters would be views of the caller's vector, and training would change it.
    vector_to_parameters(vector.to(parameters[0].device, copy=True), parameters)
    if refresh and isinstance(network, Network):
        network.refresh()


def network_hash(network: nn.Module) -> bytes:
    """Return the 32-byte SHA-256 of all weights, frozen ones included."""
    return hashlib.sha256(_to_bytes(network)).digest()


def save_network(network: nn.Module, path: Path) -> None:
    """Write all weights, those of the objective's head included, as safetensors."""
    write_atomic(path, _to_bytes(network))


def load_network(directory: Path, name: str = "network.safetensors") -> Learner:
    """Return the network that a run stored in its directory.

    Raises:
        RunError: the run's plan is missing or damaged, or the file is, or does not fit the plan.
    """
    learner = build_learner(stored_plan(directory / "plan.toml"))
    path = directory / name
    try:
        learner.network.load_state_dict(load(path.read_bytes()), strict=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise RunError(
            f"{path}: cannot be read as the plan's network ({type(error).__name__}); the run's folder is "
            "damaged, restore the file"
        ) from None
    return learner


def _to_bytes(network: nn.Module) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()})
