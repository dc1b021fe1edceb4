"""Reconstructions for people to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image

from privfm_attacks.rebuilding import Way
from privfm_attacks.verdicts import Picture

__all__ = ["picture_of"]


def picture_of(way: Way) -> Picture:
    """Return the reconstruction in the middle, beside the image of nobody that it is of."""
    one = way.typical()
    original, rebuilt = map(_data_address, one.pixels())
    return Picture(f"{way.name}: {one.psnr:.0f} dB", original, rebuilt)


def _data_address(picture: Float[np.ndarray, "c h w"]) -> str:
    pixels = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
