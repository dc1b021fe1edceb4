"""Trains every objective without privacy on `tiles`, and probes its features beside a random backbone and noise alone.

    python -m benchmarks.objectives [--json] [--write docs/objectives.md] [--splits 5] [NAME ...]

For each of several seeds, a quarter of the patients is held out; an objective trains on the others' tiles from freshly
drawn weights, and a linear probe of its backbone is scored on the held-out ones. The noise-only control takes as many
steps of the same optimiser from the same weights, along Gaussian noise (Adam's steps do not depend on its scale).
Intervals are Student's over the splits, of the difference within a split, with the variance corrected for splits that
share patients (Nadeau & Bengio 2003, "Inference for the generalization error", equation 10). `--write` replaces the
table between the file's two marks. One core needs about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from privfm.data import ImageSet, hold_out, load_images
from privfm.data.views import Augmentation, make_views, standardise
from privfm.evaluation import linear_probe
from privfm.federation.building import build_network
from privfm.models import Backbone, BackboneSpec, build_backbone
from privfm.objectives import Objective, get_objective

SPEC = BackboneSpec("vit_tiny_patch16_224", image_size=32, patch_size=8, width=64, depth=4, heads=2)
HELD_OUT = 0.25
BATCH = 64
WEIGHT_DECAY = 0.05
VIEWS = Augmentation(min_area=0.6)
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


class Recipe(NamedTuple):
    """How long and how fast; a step of the masked ones costs less.

    Args:
        refresh: steps between releases: 2 is what a federation with two local steps has. Public statistics that are a
            step old do harm to the objectives without a teacher.
    """

    steps: int
    learning_rate: float
    refresh: int = 2


RECIPES = {
    "mae": Recipe(400, 3e-3),
    "simmim": Recipe(400, 3e-3),
    "simsiam": Recipe(200, 3e-3, refresh=1),
    "byol": Recipe(200, 1.5e-3),
    "dino": Recipe(200, 1.5e-3),
    "simclr": Recipe(200, 3e-3, refresh=1),
}


@dataclass(frozen=True)
class Interval:
    """A mean over splits and its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Trial:
    """What came of an objective.

    Args:
        name, steps, learning_rate, refresh: how it was trained.
        scores: balanced accuracy on held-out patients, split by split.
        accuracy: their mean.
        noise_only: the control's mean.
        over_random, over_noise: by how much they are above the random backbone, and above the noise-only control.
        seconds: of training, of one split.
    """

    name: str
    steps: int
    learning_rate: float
    refresh: int
    scores: tuple[float, ...]
    accuracy: float
    noise_only: float
    over_random: Interval
    over_noise: Interval
    seconds: float


def try_objective(name: str, splits: int, random: Sequence[float], noise: Sequence[float]) -> Trial:
    """Train and probe it on every split."""
    recipe, seconds, scores = RECIPES[name], 0.0, []
    for seed in range(splits):
        fit, test = split(seed)
        started = time.monotonic()
        backbone = train(get_objective(name), fit, recipe, seed)
        seconds += (time.monotonic() - started) / splits
        scores.append(probe(backbone, fit, test))
    return make_trial(name, scores, random, noise, seconds)


def make_trial(
    name: str, scores: Sequence[float], random: Sequence[float], noise: Sequence[float], seconds: float
) -> Trial:
    """Compare scores with what has to be beaten, split by split."""
    over_random, over_noise = (
        interval([a - b for a, b in zip(scores, other, strict=True)]) for other in (random, noise)
    )
    return Trial(
        name,
        *RECIPES[name],
        scores=tuple(scores),
        accuracy=statistics.mean(scores),
        noise_only=statistics.mean(noise),
        over_random=over_random,
        over_noise=over_noise,
        seconds=seconds,
    )


def train(objective: Objective, images: ImageSet, recipe: Recipe, seed: int) -> Backbone:
    """Ordinary training on raw gradients: nothing of it is private."""
    rng, pixels = np.random.default_rng([seed, 3]), _pixels(images)
    network = build_network(SPEC, objective, seed).train()
    optimiser = _optimiser(network, recipe)
    for step in range(recipe.steps):
        if step % recipe.refresh == 0:
            network.refresh()
        chosen = pixels[torch.from_numpy(rng.integers(len(pixels), size=BATCH))]
        views = standardise(make_views(chosen, 1, rng, VIEWS))
        optimiser.zero_grad()
        torch.autograd.backward(objective.unit_losses(network, views[None], [rng]).mean())
        _step(optimiser, recipe, step)
    return network.backbone


def shake(recipe: Recipe, seed: int) -> Backbone:
    """The noise-only control: the same steps along Gaussian noise."""
    backbone = build_backbone(SPEC, seed)
    optimiser, generator = _optimiser(backbone, recipe), torch.Generator().manual_seed(seed)
    for step in range(recipe.steps):
        for value in backbone.parameters():
            if value.requires_grad:
                value.grad = torch.randn(value.shape, generator=generator)
        _step(optimiser, recipe, step)
    return backbone


def interval(differences: Sequence[float]) -> Interval:
    """The mean and its 95% interval; the correction counts what splits share."""
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return Interval(mean, -math.inf, math.inf)
    error = math.sqrt((1 / count + HELD_OUT / (1 - HELD_OUT)) * float(np.var(differences, ddof=1)))
    reach = float(student.ppf(0.975, count - 1)) * error
    return Interval(mean, mean - reach, mean + reach)


def _optimiser(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [value for value in network.parameters() if value.requires_grad]
    return torch.optim.AdamW(parameters, recipe.learning_rate, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)


def _step(optimiser: torch.optim.Optimizer, recipe: Recipe, step: int) -> None:
    """A linear warm-up over the first twentieth, and a cosine to zero."""
    warm = min(1.0, (step + 1) / (recipe.steps / 20))
    for group in optimiser.param_groups:
        group["lr"] = recipe.learning_rate * warm * (1 + math.cos(math.pi * step / recipe.steps)) / 2
    optimiser.step()


def split(seed: int) -> tuple[ImageSet, ImageSet]:
    return hold_out(load_images("tiles", image_size=SPEC.image_size, channels=SPEC.channels), HELD_OUT, seed)


def _pixels(images: ImageSet) -> Tensor:
    return torch.from_numpy(images.load(np.arange(len(images))))


def probe(backbone: Backbone, fit: ImageSet, test: ImageSet) -> float:
    return linear_probe(backbone.eval(), fit, test).balanced_accuracy


def controls(splits: int, recipes: Iterable[Recipe]) -> dict[Recipe, list[float]]:
    """The noise-only control's scores split by split, for each recipe."""
    return {recipe: [probe(shake(recipe, seed), *split(seed)) for seed in range(splits)] for recipe in set(recipes)}


def as_markdown(trials: Sequence[Trial], random: Sequence[float]) -> str:
    """A table, and in how many rows both intervals lie above zero."""
    lines = [
        "| | steps, rate, refresh | probe | by split | above random | noise only | above noise only | seconds |",
        "|---|---|---|---|---|---|---|---|",
        f"| random backbone | | {statistics.mean(random):.3f} | {_listed(random)} | | | | |",
        *(
            f"| `{each.name}` | {each.steps}, {each.learning_rate:g}, {each.refresh} | {each.accuracy:.3f} | "
            f"{_listed(each.scores)} | {_told(each.over_random)} | {each.noise_only:.3f} | {_told(each.over_noise)} | "
            f"{each.seconds:.0f} |"
            for each in trials
        ),
    ]
    above = sum(min(each.over_random.low, each.over_noise.low) > 0 for each in trials)
    lines += ["", f"{above} of {len(trials)} lie above both with the whole interval."]
    return "\n".join(lines)


def _listed(scores: Sequence[float]) -> str:
    return " ".join(f"{score:.2f}" for score in scores)


def _told(over: Interval) -> str:
    return f"{over.mean:+.3f} ({over.low:+.3f} to {over.high:+.3f})"


def _write(path: Path, table: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{path}: has no marks {MARKS[0]} and {MARKS[1]} to put the table between")
    path.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Train, probe, and print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this file")
    parser.add_argument("--splits", type=int, default=5, help="splits of the patients, each with a seed of its own")
    asked = parser.parse_args()
    names = asked.names or list(RECIPES)
    random = [probe(build_backbone(SPEC, seed), *split(seed)) for seed in range(asked.splits)]
    noise = controls(asked.splits, [RECIPES[name] for name in names])
    trials = []
    for name in names:
        trials.append(try_objective(name, asked.splits, random, noise[RECIPES[name]]))
        print(f"{name}: {trials[-1].accuracy:.3f}, {trials[-1].seconds:.0f} s a split", file=sys.stderr)
    table = as_markdown(trials, random)
    if asked.write:
        _write(asked.write, table)
    told = {"random": random, "trials": [asdict(each) for each in trials]}
    print(json.dumps(told) if asked.json else table)


if __name__ == "__main__":
    main()
