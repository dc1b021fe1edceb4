"""Reconstructions for people to look at."""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Float
from PIL import Image

from privfm_attacks.rebuilding import Rebuilt, Way
from privfm_attacks.verdicts import Picture

__all__ = ["pictures_of"]


def pictures_of(way: Way) -> tuple[Picture, Picture]:
    """Return the reconstruction in the middle and the best one, beside the images of nobody that they are of."""
    middle, best = way.shown()
    return _picture(f"{way.name}, in the middle: {middle.psnr:.0f} dB", middle), _picture(
        f"the best: {best.psnr:.0f} dB", best
    )


def _picture(name: str, one: Rebuilt) -> Picture:
    return Picture(name, *map(_data_address, one.pixels()))


def _data_address(picture: Float[np.ndarray, "c h w"]) -> str:
    pixels = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
