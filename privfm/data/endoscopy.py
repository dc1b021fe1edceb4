"""Drawing of frames as a colonoscope might see them: a folded tube, vessels, wet highlights, polyps, inflammation.

Nothing is simulated physically. Every frame is a function of two keys, its patient's and its own: the patient decides
colours, lamp, vessels, lens mask and the look of a lesion, the frame decides the view. All arrays are [n h w].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray

from privfm.data.fields import frame
from privfm.data.keyed import KeyedDraws

__all__ = ["INFLAMED", "NORMAL", "POLYP", "Frames", "draw_frames"]

NORMAL, POLYP, INFLAMED = 0, 1, 2

_Field = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Frames:
    """Drawn frames and where their polyps are.

    Args:
        colour: in [0, 1].
        polyp: True on a polyp that the lens shows.
    """

    colour: Float32[np.ndarray, "n 3 h w"]
    polyp: Bool[np.ndarray, "n h w"]


@dataclass(frozen=True, eq=False)
class _Wall:
    """The bowel wall in view: brightness, how far a pixel is from the lumen's dark, and wetness of fold crests."""

    light: _Field
    near: _Field
    crest: _Field


@dataclass(frozen=True, eq=False)
class _Lesion:
    """A polyp's cover in [0, 1], height in [0, 1], place along its axes, and shadow around it."""

    cover: _Field
    height: _Field
    along: _Field
    across: _Field
    shadow: _Field


def draw_frames(
    patient_keys: NDArray[np.uint64], frame_keys: NDArray[np.uint64], finding: NDArray[np.int64], size: int
) -> Frames:
    """Frames of size pixels, one for each key pair, that show the finding NORMAL, POLYP or INFLAMED."""
    patient, view = KeyedDraws(patient_keys), KeyedDraws(frame_keys)
    inflamed = (finding == INFLAMED).astype(np.float32)[:, None, None]
    wall = _wall(patient, view, size)
    base = _base_colour(patient)
    colour = base * _texture(patient, view, size) * wall.light[:, None]
    colour *= _vessels(patient, view, size, wall.near * (1.0 - 0.8 * inflamed))
    colour = _inflame(colour, view, size, inflamed)
    lesion = _lesion(patient, view, size, (finding == POLYP).astype(np.float32)[:, None, None])
    colour = _add_lesion(colour, base, lesion, patient, view)
    colour += _highlights(view, size, wall, lesion)[:, None]
    lens = _lens(patient, size)
    exposure = patient.uniform(0.8, 1.25)[:, None] * (1.0 + _grain(view, size))
    colour = np.clip(colour * exposure, 0.0, 1.0) ** np.float32(0.85)
    return Frames(colour * lens[:, None], (lesion.cover > 0.5) & (lens > 0.5))


def _waves(draws: KeyedDraws, size: int, low: float, high: float, count: int = 6) -> _Field:
    """Smooth fields of variance about 1: sums of cosines with frequencies from low to high, in radians a half frame.

    A plane wave is a product of functions of x and of y, so a field is a small matrix product.
    """
    x, y = frame(size)
    frequency, angle = draws.uniform(low, high, count, 1), draws.uniform(0.0, 2.0 * np.pi, count, 1)
    phase = draws.uniform(0.0, 2.0 * np.pi, count, 1)
    across = frequency * np.cos(angle) * x + phase
    down = frequency * np.sin(angle) * y[:, 0]
    rows = np.concatenate([np.cos(down), np.sin(down)], axis=1)
    columns = np.concatenate([np.cos(across), -np.sin(across)], axis=1)
    field: _Field = np.matmul(rows.transpose(0, 2, 1), columns) * np.float32(math.sqrt(2.0 / count))
    return field


def _wall(patient: KeyedDraws, view: KeyedDraws, size: int) -> _Wall:
    """A tube that runs to a dark lumen, with folds as rings that are bent and broken."""
    x, y = frame(size)
    bend = _waves(view, size, 1.0, 3.0)
    turn, reach = view.uniform(0.0, 2 * np.pi), np.sqrt(view.uniform(0.0, 2.0))
    dx = x - reach * np.cos(turn) + 0.08 * bend
    dy = y - reach * np.sin(turn) + 0.08 * _waves(view, size, 1.0, 3.0)
    radius = np.sqrt(dx * dx + dy * dy) + 1e-3
    lobes = view.uniform(0.0, 2 * np.pi)
    cosine = (dx * np.cos(lobes) + dy * np.sin(lobes)) / radius
    three = (4.0 * cosine * cosine - 3.0) * cosine
    depth = np.log(radius * (1.0 + 0.14 * three) + 0.15)
    phase = patient.uniform(4.0, 8.0) * depth + view.uniform(0.0, 2 * np.pi) + 0.7 * bend
    crest = np.sin(phase + 0.6 * np.sin(phase))
    near = np.clip((radius - view.uniform(-0.1, 0.15)) / patient.uniform(0.4, 0.75), 0.0, 1.0)
    near = near * near * (3.0 - 2.0 * near)
    trough = np.maximum(-crest, 0.0)
    crease = patient.uniform(0.1, 0.35) * trough * trough * trough
    folds = 1.0 + patient.uniform(0.08, 0.22) * crest - crease
    lamp = 1.0 - patient.uniform(0.15, 0.4) * (x * x + y * y)
    light: _Field = (0.05 + 0.95 * near) * folds * lamp * (1.0 + 0.08 * bend)
    return _Wall(np.maximum(light, 0.0), near, crest)


def _texture(patient: KeyedDraws, view: KeyedDraws, size: int) -> NDArray[np.float32]:
    """[n 3 h w]: soft blotches and fine grain as factors of the base colour."""
    blotch = _waves(view, size, 2.0, 6.0)[:, None] * patient.uniform(0.02, 0.07)[:, None]
    fine = _waves(view, size, 12.0, min(45.0, 1.2 * size), 10)[:, None] * patient.uniform(0.01, 0.04)[:, None]
    tint = np.array([0.4, 1.0, 0.9], dtype=np.float32)[:, None, None]
    texture: NDArray[np.float32] = 1.0 + (blotch + fine) * tint
    return texture


def _base_colour(patient: KeyedDraws) -> NDArray[np.float32]:
    """[n 3 1 1]: from pale orange to deep pink."""
    red, green = patient.uniform(0.78, 0.95), patient.uniform(0.4, 0.56)
    blue = np.minimum(patient.uniform(0.3, 0.46), green - 0.04)
    return np.stack([red, green, blue], axis=1)


def _vessels(patient: KeyedDraws, view: KeyedDraws, size: int, seen: _Field) -> NDArray[np.float32]:
    """[n 3 h w]: what branching vessels leave of the light; they run where two smooth fields change sign."""
    thin = np.float32(1.0 + 12.0 / size)
    density = patient.uniform(0.7, 1.5)
    large = np.abs(_waves(view, size, 2.0, 5.0, 8)) / (patient.uniform(0.05, 0.12) * thin)
    small = np.abs(_waves(view, size, 5.0, 11.0, 8)) / (patient.uniform(0.08, 0.16) * thin)
    patches = np.clip(0.5 + 0.6 * _waves(view, size, 1.5, 4.0), 0.0, 1.0)
    ink = np.exp(-large * large) * 0.9 + np.exp(-small * small) * patches * 0.7
    ink = np.minimum(ink, 1.0) * density * patches * seen * patient.uniform(0.1, 0.75)
    absorbs = np.array([0.35, 0.75, 0.6], dtype=np.float32)[:, None, None]
    left: NDArray[np.float32] = 1.0 - np.minimum(ink, 1.0)[:, None] * absorbs
    return left


def _inflame(colour: NDArray[np.float32], view: KeyedDraws, size: int, inflamed: _Field) -> NDArray[np.float32]:
    """Red, granular patches, with small yellow-white ulcers that have ragged outlines."""
    patch = _waves(view, size, 2.0, 5.0)
    red = inflamed * np.clip(0.7 + 0.6 * patch, 0.0, 1.0)
    grains = _waves(view, size, 12.0, min(40.0, 1.2 * size), 12)
    reddened = colour * np.array([0.97, 0.62, 0.66], dtype=np.float32)[:, None, None] * (1.0 + 0.09 * grains[:, None])
    colour = colour + red[:, None] * (reddened - colour)
    ragged = 0.4 * patch + 0.8 * _waves(view, size, 4.0, 10.0, 12) + 0.25 * grains
    ulcer = inflamed * np.clip((ragged - view.uniform(0.9, 1.6)) * 4.0, 0.0, 1.0)
    pus = np.array([0.92, 0.85, 0.66], dtype=np.float32)[:, None, None] * colour.max(axis=1, keepdims=True)
    inflamed_colour: NDArray[np.float32] = colour + 0.8 * ulcer[:, None] * (pus - colour)
    return inflamed_colour


def _lesion(patient: KeyedDraws, view: KeyedDraws, size: int, present: _Field) -> _Lesion:
    """A dome with a wavering outline, inside the frame; nothing where no polyp is present."""
    x, y = frame(size)
    turn, reach = view.uniform(0.0, 2 * np.pi), view.uniform(0.05, 0.5)
    radius = patient.uniform(0.2, 0.38) * view.uniform(0.75, 1.3)
    angle, aspect = view.uniform(0.0, np.pi), patient.uniform(0.65, 1.0) * view.uniform(0.8, 1.0)
    dx, dy = x - reach * np.cos(turn), y - reach * np.sin(turn)
    along = (np.cos(angle) * dx + np.sin(angle) * dy) / radius
    across = (np.cos(angle) * dy - np.sin(angle) * dx) / (radius * aspect)
    wavering = 1.0 + patient.uniform(0.05, 0.2) * _waves(view, size, 2.0, 6.0)
    distance = np.sqrt(along * along + across * across) * np.maximum(wavering, 0.5)
    cover = np.clip((1.0 - distance) * radius * min(size / 2.0, 28.0) + 0.5, 0.0, 1.0) * present
    height = np.sqrt(np.maximum(1.0 - distance * distance, 0.0))
    side = along * np.cos(turn) + across * np.sin(turn)
    shadow = np.exp(-((np.maximum(distance - 1.0, 0.0) / 0.3) ** 2)) * np.clip(0.45 + 0.45 * side, 0.0, 1.0) * present
    return _Lesion(cover, height, along, across, shadow)


def _add_lesion(
    colour: NDArray[np.float32], base: NDArray[np.float32], lesion: _Lesion, patient: KeyedDraws, view: KeyedDraws
) -> NDArray[np.float32]:
    """The lesion in the patient's own colour, a little redder or paler, lit from the lens, with pits."""
    size = colour.shape[-1]
    own = base * (1.0 + patient.uniform(-0.13, 0.13, 3, 1, 1))
    pits = _waves(view, size, 12.0, min(45.0, 1.2 * size), 12) * patient.uniform(0.02, 0.09)
    tilt = lesion.along * view.uniform(-0.22, 0.22) + lesion.across * view.uniform(-0.22, 0.22)
    light = (0.5 + 0.52 * lesion.height + tilt) * (1.0 + pits) * view.uniform(0.85, 1.1)
    darkened = colour * (1.0 - 0.6 * lesion.shadow)[:, None]
    shown: NDArray[np.float32] = darkened + lesion.cover[:, None] * (own * light[:, None] - darkened)
    return shown


def _highlights(view: KeyedDraws, size: int, wall: _Wall, lesion: _Lesion) -> _Field:
    """White reflections of the lamp: on wet crests of folds, and one on the top of a polyp."""
    ripple = _waves(view, size, 8.0, min(22.0, 0.8 * size), 8) + 0.5 * _waves(view, size, 3.0, 6.0) + 0.5 * wall.crest
    wet = np.clip((ripple - view.uniform(1.9, 3.0)) * 2.5, 0.0, 1.0) * wall.near
    off_x, off_y = lesion.along - view.uniform(-0.45, 0.45), lesion.across - view.uniform(-0.45, 0.45)
    spot = np.exp(-(off_x * off_x + off_y * off_y) / view.uniform(0.008, 0.03)) * view.uniform(0.2, 0.9) * lesion.cover
    white: _Field = 0.75 * wet * (1.0 - lesion.cover) + spot
    return white


def _lens(patient: KeyedDraws, size: int) -> _Field:
    """1 inside what the lens shows, 0 in the black around it: a disc, or a square with its corners cut off."""
    x, y = frame(size)
    disc = patient.uniform(0.92, 1.35) - np.sqrt(x * x + y * y)
    cut = np.minimum(
        patient.uniform(0.94, 1.02) - np.maximum(np.abs(x), np.abs(y)),
        patient.uniform(1.45, 1.8) - np.abs(x) - np.abs(y),
    )
    edge = np.where(patient.uniform(0.0, 1.0) < 0.55, disc, cut)
    lens: _Field = np.clip(edge * (size / 3.0) + 0.5, 0.0, 1.0).astype(np.float32)
    return lens


def _grain(view: KeyedDraws, size: int) -> NDArray[np.float32]:
    """[n 1 h w]: relative sensor noise."""
    noise: NDArray[np.float32] = view.uniform(-1.0, 1.0, 1, size, size) * view.uniform(0.005, 0.05)[:, None]
    return noise
