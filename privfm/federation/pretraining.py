"""A start that nobody's privacy pays for: training on images that a program drew.

Differential privacy leaves little signal to learn from, so where training starts decides much (Yu et al. 2023, "ViP: a
differentially private foundation model for computer vision", start on shader images). Procedural images are computed
from a seed, so the start needs no download, no noise and no budget. It is cached, since it depends on public things
alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import privfm
from privfm.data import procedural_images
from privfm.data.views import Augmentation, make_views, standardise
from privfm.federation import building
from privfm.federation.building import build_network
from privfm.files import write_atomic
from privfm.models import BackboneSpec
from privfm.objectives import Network, Objective, contrast

__all__ = ["Provenance", "Recipe", "cache_folder", "public_initialisation"]

Progress = Callable[[str, int, int], None]
State = dict[str, Tensor]

_STAGE = "public start"


@dataclass(frozen=True)
class Recipe:
    """How to train on procedural images.

    Args:
        images: how many are drawn at most.
        pixels: numbers that they hold together at most, which bounds memory.
        steps: optimiser steps at most; at the default backbone about a minute on two cores.
        operations: floating-point operations of all forward passes at most, which bounds time on larger backbones.
        least_steps: taken even so.
        batch: images in a step, two views of each.
        learning_rate, weight_decay: of AdamW, with a linear warm-up over the first twentieth and a cosine to zero.
        min_area, brightness: how views differ from their image, see `Augmentation`.
        contrast: weight of telling images apart, beside the objective; 0 leaves the objective alone.
        temperature: of that.
        refresh: steps after which an objective's teacher and public embeddings follow the weights.
    """

    images: int = 20_000
    pixels: int = 2**26
    steps: int = 700
    operations: float = 1.3e12
    least_steps: int = 20
    batch: int = 64
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    min_area: float = 0.4
    brightness: float = 0.5
    contrast: float = 0.3
    temperature: float = 0.2
    refresh: int = 2


@dataclass(frozen=True)
class Provenance:
    """Where a public start came from.

    Attributes:
        sentence: for the privacy statement.
        key: SHA-256 of all that determines the weights, hexadecimal; names the file in the cache.
        weights: SHA-256 of the weights, hexadecimal.
        seconds: that the training took, when it took place.
        cached: whether it took place before.
    """

    sentence: str
    key: str
    weights: str
    seconds: float
    cached: bool


def public_initialisation(
    spec: BackboneSpec,
    objective: Objective,
    *,
    seed: int,
    recipe: Recipe | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[State, Provenance]:
    """The state of a network trained on procedural images, head included, and where it came from.

    Args:
        seed: of the images, the weights and the masks; the same seed gives the same state on the same machine.
        recipe: by default one that suits the default backbone.
        cache: folder of earlier results, by default in the user's cache; a damaged entry is made again.
        progress: told a name and steps done of all.

    Raises:
        ModelError: the backbone is unknown or unsound.
    """
    recipe = recipe or Recipe()
    key = _key(spec, objective, seed, recipe)
    file = (cache or cache_folder()) / f"start-{key}.safetensors"
    network = build_network(spec, objective, seed)
    recipe = _fitted(recipe, network, objective, spec)
    stored = _read(file, network)
    if stored is not None:
        state, seconds = stored
        return state, _provenance(key, state, seconds, recipe, seed, cached=True)
    started = time.monotonic()
    state = _train(network, objective, spec, recipe, seed, progress or _silent)
    seconds = time.monotonic() - started
    _write(file, state, seconds)
    return state, _provenance(key, state, seconds, recipe, seed, cached=False)


def cache_folder() -> Path:
    """Where results are kept: `privfm` in $XDG_CACHE_HOME, else in ~/.cache."""
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache") / "privfm"


def _fitted(recipe: Recipe, network: Network, objective: Objective, spec: BackboneSpec) -> Recipe:
    """The recipe with as many images and steps as its limits allow; a function of the network, not of the clock."""
    shape = (spec.channels, spec.image_size, spec.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        objective.unit_losses(network, torch.zeros(1, 1, *shape), [np.random.default_rng(0)])
    per_step = max(counter.get_total_flops(), 1) * 2 * recipe.batch
    steps = max(recipe.least_steps, int(recipe.operations / per_step))
    images = max(2 * recipe.batch, recipe.pixels // math.prod(shape))
    return replace(recipe, steps=min(recipe.steps, steps), images=min(recipe.images, images))


def _train(
    network: Network, objective: Objective, spec: BackboneSpec, recipe: Recipe, seed: int, progress: Progress
) -> State:
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(procedural_images(recipe.images, spec.image_size, spec.channels, rng))
    head = _contrast_head(network.feature_width, seed)
    parameters = [value for value in (*network.parameters(), *head.parameters()) if value.requires_grad]
    optimiser = torch.optim.AdamW(parameters, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    network.train()
    for step, views in enumerate(_batches(images, recipe, rng)):
        progress(_STAGE, step, recipe.steps)
        if step % recipe.refresh == 0:
            network.refresh()  # every image here is nobody's, so any step may teach
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        losses, features = objective.losses_and_features(network, views, [rng, rng])
        told_apart = contrast(head(features[0]), head(features[1]), recipe.temperature)
        optimiser.zero_grad()
        torch.autograd.backward(losses.mean() + recipe.contrast * told_apart)
        optimiser.step()
    progress(_STAGE, recipe.steps, recipe.steps)
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _contrast_head(width: int, seed: int) -> nn.Module:
    """A projection that takes what is special to telling images apart, and is thrown away. Chen et al. 2020, 4.2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))


def _batches(
    images: Float[Tensor, "n c h w"], recipe: Recipe, rng: np.random.Generator
) -> Iterator[Float[Tensor, "2 batch c h w"]]:
    """Two units, each one view of every image of a batch: nobody is protected here, so a unit need not be a person."""
    augmentation = Augmentation(min_area=recipe.min_area, brightness=recipe.brightness, vertical_flip=True)
    for _ in range(recipe.steps):
        chosen = images[torch.from_numpy(rng.integers(len(images), size=recipe.batch))]
        yield torch.stack([standardise(make_views(chosen, 1, rng, augmentation)) for _ in range(2)])


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1.0, steps / 20))
    return warm * (1.0 + math.cos(math.pi * step / steps)) / 2


def _key(spec: BackboneSpec, objective: Objective, seed: int, recipe: Recipe) -> str:
    told: dict[str, Any] = {
        "spec": asdict(spec),
        "objective": f"{type(objective).__qualname__} {objective!r}",
        "recipe": asdict(recipe),
        "seed": seed,
        "versions": {name: version(name) for name in ("numpy", "timm", "torch")},
        "source": _source_hash(),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _source_hash() -> str:
    """A hash of the code that draws images, builds networks and computes losses: an upgrade starts anew."""
    root = Path(privfm.__file__).parent
    files = sorted(file for part in ("data", "models", "objectives") for file in (root / part).glob("*.py"))
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in (*files, Path(building.__file__)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(file: Path, network: Network) -> tuple[State, float] | None:
    """An earlier result, if there is one that is whole and fits; anything else is as good as none."""
    try:
        with safe_open(file, framework="pt") as stored:
            told = stored.metadata() or {}
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
        seconds = float(told.get("seconds", "nan"))
    except (OSError, SafetensorError, ValueError):
        return None
    expected = network.state_dict()
    fits = state.keys() == expected.keys() and all(state[name].shape == expected[name].shape for name in state)
    return (state, seconds) if fits and told.get("weights") == _weights_hash(state) else None


def _write(file: Path, state: State, seconds: float) -> None:
    told = {"format": "pt", "seconds": str(seconds), "weights": _weights_hash(state)}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, save(_contiguous(state), metadata=told))
    except OSError:
        return  # a cache that cannot be written costs time, not correctness


def _weights_hash(state: State) -> str:
    return hashlib.sha256(save(_contiguous(state))).hexdigest()


def _contiguous(state: State) -> State:
    return {name: value.contiguous() for name, value in state.items()}


def _provenance(key: str, state: State, seconds: float, recipe: Recipe, seed: int, *, cached: bool) -> Provenance:
    weights = _weights_hash(state)
    sentence = (
        f"initial weights trained without privacy, by the objective and by telling images apart, "
        f"on {recipe.images} procedural images that a program drew "
        f"(seed {seed}, {recipe.steps} steps of {recipe.batch} images; nobody's data), SHA-256 {weights}"
    )
    return Provenance(sentence, key, weights, seconds, cached)


def _silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
