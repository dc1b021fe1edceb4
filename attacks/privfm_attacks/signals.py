"""What an encoder gives away of an image it was trained on: three signals, each known from the literature.

* loss: of the objective itself, under many masks or glances (Yeom et al. 2018; for masked autoencoders, their error);
* agreement of an image's augmented views (Liu et al. 2021, "EncoderMI");
* response of an image's parts to the whole (Zhu et al. 2024, "PartCrop").

Each is taken relative to an encoder that never saw the image, the one that training began with (Carlini et al. 2022,
section IV-C, offline attack; Zarifzadeh et al. 2024): some images are easy for any encoder.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from privfm.data import ImageSet
from privfm.data.views import Augmentation, make_views, standardise
from privfm.federation.network import Learner

__all__ = ["SIGNALS", "images_of", "relative_signals"]

SIGNALS = ("loss", "agreement of views", "response of parts")
AT_ONCE = 16  # patients

_VIEWS = Augmentation(min_area=0.3, brightness=0.3)
_PARTS = Augmentation(min_area=0.08, max_stretch=1.2)


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
    learner: Learner, reference: Learner, patients: Float[Tensor, "patients each c h w"], draws: int
) -> Float[np.ndarray, "patients signals"]:
    """Each patient's signals, higher for those trained on, less what the reference gives under the same draws.

    Args:
        learner: the network in question.
        reference: the same network before it saw anybody.
        draws: masks, views and parts of an image.
    """
    starts = range(0, len(patients), AT_ONCE)
    parts = [patients[start : start + AT_ONCE] for start in starts]
    return np.concatenate(
        [
            _signals(learner, part, start, draws) - _signals(reference, part, start, draws)
            for start, part in zip(starts, parts, strict=True)
        ]
    )


@torch.no_grad()
def _signals(learner: Learner, patients: Tensor, first: int, draws: int) -> Float[np.ndarray, "patients signals"]:
    learner.network.eval()
    each = [_loss(learner, patients, first, draws), *_features(learner, patients, first, draws)]
    return torch.stack(each, dim=1).double().numpy()


def _loss(learner: Learner, patients: Tensor, first: int, draws: int) -> Float[Tensor, " patients"]:
    views = standardise(patients).repeat_interleave(draws, dim=1)
    rngs = [np.random.default_rng([first, place]) for place in range(len(patients))]
    return -learner.objective.unit_losses(learner.network, views, rngs)


def _features(
    learner: Learner, patients: Tensor, first: int, draws: int
) -> tuple[Float[Tensor, " patients"], Float[Tensor, " patients"]]:
    """Mean cosine between views of an image; how sharply parts point at places of the whole."""
    backbone, rng = learner.network.backbone, np.random.default_rng(first)
    count, each = patients.shape[:2]
    images = patients.flatten(0, 1)
    views = backbone.features(standardise(make_views(images, draws, rng, _VIEWS)))
    views = functional.normalize(views, dim=1).reshape(count * each, draws, -1)
    agreement = ((views @ views.mT).sum(dim=(1, 2)) - draws) / (draws * (draws - 1))
    whole = functional.normalize(backbone.feature_map(standardise(images)).flatten(2), dim=1)
    parts = backbone.feature_map(standardise(make_views(images, draws, rng, _PARTS))).flatten(2).mean(dim=2)
    parts = functional.normalize(parts, dim=1).reshape(count * each, draws, -1)
    response = (parts @ whole).std(dim=2).mean(dim=1)
    return agreement.reshape(count, each).mean(dim=1), response.reshape(count, each).mean(dim=1)
