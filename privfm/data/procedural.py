"""Images that a program drew: nobody's data, for pre-training without privacy and for showing reconstructions.

Occluding textured shapes give them edges and depth order, power-law noise gives them the spectrum of photographs, and
cells, filaments, gratings and strokes give them the textures of tissue, vessels and writing. Everything is vectorised
over images.

Sources: Lee, Mumford & Huang 2001 (occlusion: dead leaves); Baradad et al. 2021, arXiv 2106.05963 (that such images
train encoders); Worley 1996 (cellular texture); Yu et al. 2023, arXiv 2306.08842 (as a public start for DP training).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from privfm.data.endoscopy import draw_frames
from privfm.data.fields import frame, spectral_noise, uniform
from privfm.data.pixels import to_channels

__all__ = ["procedural_images"]

#: Pixels drawn at once, so that working arrays stay in cache and memory stays bounded.
_CHUNK_PIXELS = 2**17

_Images = NDArray[np.float32]  # [n channels size size]
_Family = Callable[[int, int, int, np.random.Generator], _Images]


def procedural_images(
    count: int, image_size: int, channels: int, rng: np.random.Generator
) -> Float[np.ndarray, "count channels image_size image_size"]:
    """Drawn images, float32 in [0, 1]; the same for the same generator state.

    Example:
        >>> procedural_images(3, 16, 1, np.random.default_rng(0)).shape
        (3, 1, 16, 16)
    """
    images = np.empty((count, channels, image_size, image_size), dtype=np.float32)
    step = max(16, _CHUNK_PIXELS // image_size**2)
    for start in range(0, count, step):
        part = images[start : start + step]
        part[...] = _finish(_scenes(len(part), image_size, channels, rng), rng)
    return images


def _scenes(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """One family's image each, and in a third of them a second family's shows through a ragged region."""
    scenes = _mixture(count, size, channels, rng)
    joined = np.flatnonzero(rng.random(count) < 0.33)
    region = _sigmoid(spectral_noise(len(joined), size, rng, exponents=(1.5, 2.5)), uniform(rng, 3, 30, len(joined)))
    scenes[joined] += region[:, None] * (_mixture(len(joined), size, channels, rng) - scenes[joined])
    return scenes


def _mixture(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    families: tuple[tuple[_Family, float], ...] = (
        (_leaves, 0.35),
        (_noise, 0.1),
        (_folded_noise, 0.15),
        (_gratings, 0.1),
        (_cells, 0.13),
        (_strokes, 0.12),
        (_endoscopy, 0.05),
    )
    family_of = rng.choice(len(families), size=count, p=[share for _, share in families])
    images = np.empty((count, channels, size, size), dtype=np.float32)
    for index, (draw, _) in enumerate(families):
        mine = np.flatnonzero(family_of == index)
        if len(mine):
            images[mine] = draw(len(mine), size, channels, rng)
    return images


def _finish(images: _Images, rng: np.random.Generator) -> _Images:
    """Uneven light, sensor noise and a random contrast, within [0, 1]."""
    count, _, size, _ = images.shape
    x, y = frame(size)
    angle, slope = uniform(rng, 0, 2 * np.pi, count), uniform(rng, 0, 0.5, count)
    light = 1.0 + slope * (np.cos(angle) * x + np.sin(angle) * y)
    grain = uniform(rng, 0, 0.05, count)[:, None] * rng.standard_normal(images.shape, dtype=np.float32)
    low = images.min(axis=(1, 2, 3), keepdims=True)
    spread = images.max(axis=(1, 2, 3), keepdims=True) - low
    contrast, centre = uniform(rng, 0.3, 1.0, count)[:, None], rng.random((count, 1, 1, 1), dtype=np.float32)
    scaled = (images - low) / (spread + np.float32(1e-3)) * contrast + centre * (1.0 - contrast)
    finished: _Images = np.clip(scaled * light[:, None] + grain, 0.0, 1.0)
    return finished


def _sigmoid(field: NDArray[np.float32], steepness: NDArray[np.float32]) -> NDArray[np.float32]:
    curve: NDArray[np.float32] = np.tanh(field * steepness)
    return curve * np.float32(0.5) + np.float32(0.5)


def _colours(count: int, channels: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """[count channels 1 1]: mostly lightness, some hue, as in photographs."""
    lightness = rng.random((count, 1, 1, 1), dtype=np.float32)
    if channels == 1:
        return lightness
    return lightness + 0.18 * rng.standard_normal((count, channels, 1, 1), dtype=np.float32)


def _paint(field: NDArray[np.float32], channels: int, rng: np.random.Generator) -> _Images:
    """A field in [0, 1] as a blend between two colours."""
    count = len(field)
    if channels == 1:
        return field[:, None]
    first, second = _colours(count, channels, rng), _colours(count, channels, rng)
    return first + field[:, None] * (second - first)


def _noise(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    return _paint(np.float32(0.5) + np.float32(0.2) * spectral_noise(count, size, rng), channels, rng)


def _folded_noise(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """Noise bent by a pointwise function: filaments, blobs with sharp rims, and wandering stripes."""
    field = spectral_noise(count, size, rng, exponents=(1.2, 2.4))
    kind = rng.integers(3, size=(count, 1, 1))
    filaments = np.exp(-np.abs(field) * uniform(rng, 3, 12, count))
    blobs = _sigmoid(field + uniform(rng, -0.7, 0.7, count), uniform(rng, 2, 20, count))
    stripes = 0.5 + 0.5 * np.sin(field * uniform(rng, 3, 14, count))
    bent = np.where(kind == 0, filaments, np.where(kind == 1, blobs, stripes))
    grain = uniform(rng, 0, 0.12, count) * spectral_noise(count, size, rng)
    return _paint(bent + grain, channels, rng)


def _gratings(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """Up to three oriented waves on bent coordinates, sharpened towards bars or softened by windows."""
    x, y = frame(size)
    bend = uniform(rng, 0, 0.25, count) * spectral_noise(count, size, rng, exponents=(2.0, 2.5))
    total = np.zeros((count, size, size), dtype=np.float32)
    for layer in range(3):
        angle, cycles = uniform(rng, 0, np.pi, count), np.exp(uniform(rng, 0.0, np.log(size / 5), count))
        phase = uniform(rng, 0, 2 * np.pi, count) + np.pi * cycles * bend
        wave = np.sin(np.pi * cycles * (np.cos(angle) * x + np.sin(angle) * y) + phase)
        window = np.exp(-uniform(rng, 0, 4, count) * ((x - uniform(rng, -1, 1, count)) ** 2 + y * y))
        total += wave * window * (rng.random((count, 1, 1)) < (1.0, 0.5, 0.3)[layer])
    return _paint(_sigmoid(total, np.exp(uniform(rng, -1.0, 2.0, count))), channels, rng)


def _cells(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """Cellular texture: nuclei, walls and facets around scattered points."""
    x, y = frame(size)
    nearest = np.full((count, size, size), np.inf, dtype=np.float32)
    second, shade = nearest.copy(), np.zeros_like(nearest)
    squeeze, used = uniform(rng, 0.5, 2.0, count), uniform(rng, 5, 25, count)
    for point in range(24):
        dx, dy = x - uniform(rng, -1.2, 1.2, count), (y - uniform(rng, -1.2, 1.2, count)) * squeeze
        distance = dx * dx + dy * dy + np.where(point < used, np.float32(0), np.float32(8))
        closer = distance < nearest
        second = np.minimum(second, np.where(closer, nearest, distance))
        nearest = np.where(closer, distance, nearest)
        shade = np.where(closer, uniform(rng, 0, 1, count), shade)
    nearest, second = np.sqrt(nearest), np.sqrt(second)
    kind = rng.integers(3, size=(count, 1, 1))
    nuclei = _sigmoid(uniform(rng, 0.05, 0.25, count) - nearest, uniform(rng, 5, 40, count))
    walls = np.exp(-(second - nearest) * uniform(rng, 5, 25, count))
    field = np.where(kind == 0, nuclei, np.where(kind == 1, walls, shade + 0.5 * nuclei))
    grain = uniform(rng, 0, 0.15, count) * spectral_noise(count, size, rng)
    return _paint(field + grain, channels, rng)


def _strokes(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """Straight strokes of varied width on a textured ground, some in rows as in writing, some branching as vessels."""
    x, y = frame(size)
    ink = np.zeros((count, size, size), dtype=np.float32)
    written = rng.random((count, 1, 1)) < 0.4
    width = np.exp(uniform(rng, np.log(0.02), np.log(0.12), count))
    end_x, end_y = uniform(rng, -1, 1, count), uniform(rng, -1, 1, count)
    for _ in range(14):
        line = np.round(uniform(rng, -3, 3, count)) / 3.5
        start_x = np.where(written, uniform(rng, -1, 1, count), end_x)
        start_y = np.where(written, line + uniform(rng, -0.1, 0.1, count), end_y)
        reach = np.where(written, np.float32(0.2), np.float32(0.7))
        step_x, step_y = reach * uniform(rng, -1, 1, count), reach * uniform(rng, -1, 1, count)
        along = np.clip(((x - start_x) * step_x + (y - start_y) * step_y) / (step_x**2 + step_y**2 + 1e-4), 0, 1)
        distance = np.hypot(x - start_x - along * step_x, y - start_y - along * step_y)
        ink = np.maximum(ink, np.clip((width - distance) * (size / 2) + 0.5, 0, 1))
        end_x, end_y = start_x + step_x, start_y + step_y
    ground = 0.25 * uniform(rng, 0, 1, count) * spectral_noise(count, size, rng)
    return _paint(np.abs(ink - (rng.random((count, 1, 1)) < 0.5)) + ground, channels, rng)


def _endoscopy(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """The phantom's frames, each of another patient."""
    keys = rng.integers(2**64, size=(2, count), dtype=np.uint64)
    return to_channels(draw_frames(keys[0], keys[1], rng.integers(3, size=count), size).colour, channels)


def _leaves(count: int, size: int, channels: int, rng: np.random.Generator) -> _Images:
    """Shapes with textures, shading and soft or sharp rims that hide each other; sizes follow a power law."""
    texture = spectral_noise(count, size, rng)
    canvas: _Images = _colours(count, channels, rng) + 0.15 * uniform(rng, 0, 1, count)[:, None] * texture[:, None]
    sharpness = np.exp(uniform(rng, np.log(2.0), np.log(size / 2.0), count))
    smallest = np.exp(uniform(rng, np.log(0.06), np.log(0.3), count))
    for _ in range(18):
        radius = np.minimum(smallest / np.sqrt(uniform(rng, 0.01, 1.0, count)), np.float32(1.2))
        depth, along = _shape(count, size, radius, rng)
        cover = np.clip(depth * sharpness * radius + 0.5, 0, 1)[:, None]
        relief = uniform(rng, -0.3, 0.3, count) * along + uniform(rng, -0.2, 0.3, count) * depth
        relief = relief + uniform(rng, 0, 0.25, count) * np.roll(texture, int(rng.integers(count)), axis=0)
        canvas += cover * (_colours(count, channels, rng) + relief[:, None] - canvas)
    return canvas


def _shape(
    count: int, size: int, radius: NDArray[np.float32], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How deep each pixel lies in a shape (1 at its centre, 0 on its rim), and its place along the shape's axis."""
    x, y = frame(size)
    dx, dy = x - uniform(rng, -1.1, 1.1, count), y - uniform(rng, -1.1, 1.1, count)
    angle, aspect = uniform(rng, 0, np.pi, count), np.exp(uniform(rng, -0.9, 0.9, count))
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / (radius * aspect)
    across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius / aspect)
    if rng.random() < 0.4:
        return 1.0 - np.maximum(np.abs(along), np.abs(across)), along
    corner = uniform(rng, -1.2, 2.0, count)
    squared = along * along + across * across + corner * np.abs(along * across)
    depth: NDArray[np.float32] = 1.0 - np.sqrt(np.maximum(squared, np.float32(0)))
    return depth, along
