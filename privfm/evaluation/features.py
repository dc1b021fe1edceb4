"""Frozen features of a set of images."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from privfm.data import ImageSet
from privfm.data.views import standardise
from privfm.errors import DataError
from privfm.models import Backbone

__all__ = ["labelled", "pooled_features"]

_BATCH = 256


@torch.no_grad()
def pooled_features(backbone: Backbone, images: ImageSet) -> Float32[np.ndarray, "images d"]:
    """The backbone's pooled feature of every image, standardised as in training and otherwise untouched."""
    device = next(backbone.parameters()).device
    training = backbone.training
    backbone.eval()
    features = np.empty((len(images), backbone.width), dtype=np.float32)
    for start in range(0, len(images), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(images)))
        batch = torch.from_numpy(images.load(rows)).to(device)
        features[rows] = backbone.features(standardise(batch)).float().cpu().numpy()
    backbone.train(training)
    return features


def labelled(images: ImageSet) -> tuple[ImageSet, NDArray[np.int64]]:
    """The images that have a label, and their labels.

    Raises:
        DataError: no image has one.
    """
    if images.labels is None or not (images.labels >= 0).any():
        raise DataError(f"{images.name}: no image has a label; a probe needs labels for fitting and for testing")
    rows = np.flatnonzero(images.labels >= 0)
    if len(rows) == len(images):
        return images, images.labels
    return images.select(rows), images.labels[rows]
