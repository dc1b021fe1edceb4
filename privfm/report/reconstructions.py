"""What the trained network makes of public images when most of each is hidden."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privfm.data import hold_out, load_images
from privfm.data.views import standardise
from privfm.federation.network import load_network
from privfm.objectives import Reconstructs
from privfm.plan import Plan

__all__ = ["Reconstruction", "reconstruct_public_images"]

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "coins", "page", "cell", "ihc", "retina")
DEFAULT_HELD_OUT = 0.25
SEED = 20


@dataclass(frozen=True)
class Reconstruction:
    """One public image three times, as `data:` addresses of PNGs."""

    name: str
    original: str
    masked: str
    rebuilt: str


def reconstruct_public_images(directory: Path) -> tuple[Reconstruction, ...]:
    """Return built-in photographs as they are, as the run's network saw them, and as it rebuilt them.

    There are none of a network whose objective predicts no pixels.

    Guarantees: only images that come with the installation are read, whatever the run was trained on. A run on those
    very images has kept the ones that are shown here out of training, unless its plan holds nobody out.

    Raises:
        RunError: the run's plan or network cannot be read.
    """
    learner = load_network(directory)
    if not isinstance(learner.objective, Reconstructs):
        return ()
    names, images = _public_images(learner.plan)
    learner.network.eval()
    seen, rebuilt = learner.objective.reconstruct(
        learner.network, standardise(images), np.random.Generator(np.random.Philox(SEED))
    )
    rows = zip(names, images, _like(images, seen), _like(images, rebuilt), strict=True)
    return tuple(Reconstruction(name, *map(_data_address, pictures)) for name, *pictures in rows)


def _public_images(plan: Plan) -> tuple[list[str], Float[Tensor, "b c h w"]]:
    """Return, of each photograph, the held-out tile with the most detail."""
    tiles = load_images("tiles", image_size=plan.data.image_size, channels=plan.data.channels)
    _, test = hold_out(tiles, plan.data.held_out or DEFAULT_HELD_OUT, plan.seed)
    labels = test.labels if test.labels is not None else np.full(len(test), -1)
    names, pixels = [], []
    for name in PHOTOGRAPHS:
        of_photograph = test.load(np.flatnonzero(labels == test.class_names.index(name)))
        names.append(name)
        pixels.append(of_photograph[np.abs(np.diff(of_photograph)).mean(axis=(1, 2, 3)).argmax()])
    return names, torch.from_numpy(np.stack(pixels))


def _like(images: Float[Tensor, "b c h w"], standardised: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Undo standardisation: give each picture the brightness and contrast of its original."""
    deviation, mean = torch.std_mean(images, dim=(1, 2, 3), keepdim=True, correction=0)
    return (standardised * deviation + mean).clamp(0, 1)


def _data_address(picture: Float[Tensor, "c h w"]) -> str:
    pixels: NDArray[np.uint8] = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
