"""What a model gives away of an image that it was trained on: signals, higher for those that it saw.

* loss: of the objective itself, under many masks or glances (Yeom et al. 2018; for masked autoencoders, their error);
* agreement of an image's augmented views (Liu et al. 2021, "EncoderMI");
* response of an image's parts to the whole (Zhu et al. 2024, "PartCrop");
* how little features move when blocks of the image are blanked, one or many, or noise is added: a network is steadier
  near what it was fitted to;
* how alike an image's places are, and how long its pooled feature is.

All but the first need the encoder alone. Each is taken relative to an encoder that never saw the image, the one that
training began with (Carlini et al. 2022, section IV-C, offline attack; Zarifzadeh et al. 2024): some images are easy
for any encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from privfm.data import ImageSet
from privfm.data.views import Augmentation, make_views, standardise
from privfm.federation.network import Learner
from privfm.models import Backbone

__all__ = ["OF_ENCODERS", "SIGNALS", "images_of", "pooled_features", "relative_signals"]

AT_ONCE = 16  # patients

_VIEWS = Augmentation(min_area=0.3, brightness=0.3)
_PARTS = Augmentation(min_area=0.08, max_stretch=1.2)
BLOCKS = 8
"""On a side of an image, of those that are blanked."""

BLANKED = 0.25
NOISE = 0.03
"""Standard deviation, of an image's own."""


def images_of(
    images: ImageSet, patients: Float[np.ndarray, " patients"] | range, each: int, rng: np.random.Generator
) -> Float[Tensor, "patients {each} c h w"]:
    """So many images of each patient, drawn anew where they have fewer."""
    rows = []
    for patient in patients:
        own = rng.permutation(np.flatnonzero(images.patient_of == patient))
        rows.append(np.resize(own, each))
    pixels = images.load(np.concatenate(rows))
    return torch.from_numpy(pixels).reshape(len(rows), each, *pixels.shape[1:])


def relative_signals(
    learner: Learner,
    reference: Learner,
    patients: Float[Tensor, "patients each c h w"],
    draws: int,
    names: Sequence[str],
) -> Float[np.ndarray, "patients signals"]:
    """Each patient's signals, higher for those trained on, less what the reference gives under the same draws.

    Args:
        learner: the network in question.
        reference: the same network before it saw anybody.
        draws: masks, views, parts and so on of an image.
        names: of the signals, from `SIGNALS`.
    """
    starts = range(0, len(patients), AT_ONCE)
    parts = [patients[start : start + AT_ONCE] for start in starts]
    return np.concatenate(
        [
            _signals(learner, part, start, draws, names) - _signals(reference, part, start, draws, names)
            for start, part in zip(starts, parts, strict=True)
        ]
    )


@torch.no_grad()
def pooled_features(
    learner: Learner, patients: Float[Tensor, "patients each c h w"]
) -> Float[np.ndarray, "patients d"]:
    """Each patient's pooled feature, the mean over images."""
    learner.network.eval()
    parts = [
        learner.network.backbone.features(standardise(part.flatten(0, 1))) for part in torch.split(patients, AT_ONCE)
    ]
    return torch.cat(parts).reshape(*patients.shape[:2], -1).mean(dim=1).double().numpy()


@torch.no_grad()
def _signals(
    learner: Learner, patients: Tensor, first: int, draws: int, names: Sequence[str]
) -> Float[np.ndarray, "patients signals"]:
    learner.network.eval()
    each = []
    for name in names:
        if name == "loss":
            each.append(_loss(learner, patients, first, draws))
            continue
        signal = _ENCODER[name](learner.network.backbone, patients.flatten(0, 1), draws, np.random.default_rng(first))
        each.append(signal.reshape(patients.shape[:2]).mean(dim=1))
    return torch.stack(each, dim=1).double().numpy()


def _loss(learner: Learner, patients: Tensor, first: int, draws: int) -> Float[Tensor, " patients"]:
    views = standardise(patients).repeat_interleave(draws, dim=1)
    rngs = [np.random.default_rng([first, place]) for place in range(len(patients))]
    return -learner.objective.unit_losses(learner.network, views, rngs)


Images = Float[Tensor, "images c h w"]


def _agreement(backbone: Backbone, images: Images, draws: int, rng: np.random.Generator) -> Float[Tensor, " images"]:
    """Mean cosine between views of an image."""
    views = backbone.features(standardise(make_views(images, draws, rng, _VIEWS)))
    views = functional.normalize(views, dim=1).reshape(len(images), draws, -1)
    agreement: Tensor = ((views @ views.mT).sum(dim=(1, 2)) - draws) / (draws * (draws - 1))
    return agreement


def _response(backbone: Backbone, images: Images, draws: int, rng: np.random.Generator) -> Float[Tensor, " images"]:
    """How sharply parts point at places of the whole."""
    whole = _places(backbone, standardise(images))
    parts = backbone.feature_map(standardise(make_views(images, draws, rng, _PARTS))).flatten(2).mean(dim=2)
    parts = functional.normalize(parts, dim=1).reshape(len(images), draws, -1)
    return (parts @ whole).std(dim=2).mean(dim=1)


def _likeness(backbone: Backbone, images: Images, draws: int, rng: np.random.Generator) -> Float[Tensor, " images"]:
    """Mean cosine between places."""
    places = _places(backbone, standardise(images))
    alike: Tensor = (places.mT @ places).mean(dim=(1, 2))
    return alike


def _length(backbone: Backbone, images: Images, draws: int, rng: np.random.Generator) -> Float[Tensor, " images"]:
    """Of the pooled feature."""
    lengths: Tensor = backbone.features(standardise(images)).norm(dim=1)
    return lengths


def _steadiness(
    change: Callable[[Images, np.random.Generator], Images],
) -> Callable[[Backbone, Images, int, np.random.Generator], Float[Tensor, " images"]]:
    """The mean over places of how little they move when the image changes, as a share of their length."""

    def signal(backbone: Backbone, images: Images, draws: int, rng: np.random.Generator) -> Float[Tensor, " images"]:
        whole = standardise(images)
        before = backbone.feature_map(whole).flatten(2)
        lengths = before.norm(dim=1).clamp(min=1e-12)
        moved = [
            (backbone.feature_map(change(whole, rng)).flatten(2) - before).norm(dim=1) / lengths for _ in range(draws)
        ]
        return -torch.stack(moved).mean(dim=(0, 2))

    return signal


def _some_blanked(images: Images, rng: np.random.Generator) -> Images:
    return _blanked(images, rng.random((len(images), 1, BLOCKS, BLOCKS)) < BLANKED)


def _one_blanked(images: Images, rng: np.random.Generator) -> Images:
    chosen = np.arange(BLOCKS**2) == rng.integers(BLOCKS**2, size=(len(images), 1))
    return _blanked(images, chosen.reshape(-1, 1, BLOCKS, BLOCKS))


def _blanked(images: Images, blocks: Bool[np.ndarray, "images 1 blocks blocks"]) -> Images:
    mask = functional.interpolate(torch.from_numpy(blocks).float(), size=images.shape[2:], mode="nearest")
    return images * (1 - mask)


def _noised(images: Images, rng: np.random.Generator) -> Images:
    return images + NOISE * torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))


def _places(backbone: Backbone, images: Images) -> Float[Tensor, "images d places"]:
    return functional.normalize(backbone.feature_map(images).flatten(2), dim=1)


_ENCODER: dict[str, Callable[[Backbone, Images, int, np.random.Generator], Float[Tensor, " images"]]] = {
    "agreement of views": _agreement,
    "response of parts": _response,
    "steadiness when blocks are blanked": _steadiness(_some_blanked),
    "steadiness when one block is blanked": _steadiness(_one_blanked),
    "steadiness under noise": _steadiness(_noised),
    "likeness of places": _likeness,
    "length of features": _length,
}
OF_ENCODERS = tuple(_ENCODER)
SIGNALS = ("loss", *OF_ENCODERS)
