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
import sys
import time
from collections.abc import Sequence
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
REFRESH = 2  # steps between releases, as in a federation with two local steps
VIEWS = Augmentation(min_area=0.6)
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


class Recipe(NamedTuple):
    """How long and how fast; a step of the masked ones costs less."""

    steps: int
    learning_rate: float


RECIPES = {
    "mae": Recipe(400, 3e-3),
    "simmim": Recipe(400, 3e-3),
    "simsiam": Recipe(200, 1.5e-3),
    "byol": Recipe(200, 1.5e-3),
    "dino": Recipe(200, 1.5e-3),
    "simclr": Recipe(200, 1.5e-3),
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
        name, steps, learning_rate: how it was trained.
        scores: balanced accuracy on held-out patients, split by split.
        accuracy: their mean.
        over_random, over_noise: by how much they are above the random backbone, and above the noise-only control.
        seconds: of training, of one split.
    """

    name: str
    steps: int
    learning_rate: float
    scores: tuple[float, ...]
    accuracy: float
    over_random: Interval
    over_noise: Interval
    seconds: float


@dataclass(frozen=True)
class Baseline:
    """What has to be beaten: scores split by split."""

    name: str
    scores: tuple[float, ...]
    accuracy: float


def try_objective(name: str, splits: int, random: Sequence[float], noise: Sequence[float]) -> Trial:
    """Train and probe it on every split."""
    recipe, started, probing, scores = RECIPES[name], time.monotonic(), 0.0, []
    for seed in range(splits):
        fit, test = split(seed)
        backbone = train(get_objective(name), fit, recipe, seed)
        before = time.monotonic()
        scores.append(probe(backbone, fit, test))
        probing += time.monotonic() - before
    seconds = (time.monotonic() - started - probing) / splits
    over_random, over_noise = (
        interval([a - b for a, b in zip(scores, other, strict=True)]) for other in (random, noise)
    )
    return Trial(name, *recipe, tuple(scores), float(np.mean(scores)), over_random, over_noise, seconds)


def train(objective: Objective, images: ImageSet, recipe: Recipe, seed: int) -> Backbone:
    """Ordinary training on raw gradients: nothing of it is private."""
    rng, pixels = np.random.default_rng([seed, 3]), _pixels(images)
    network = build_network(SPEC, objective, seed).train()
    optimiser = _optimiser(network, recipe)
    for step in range(recipe.steps):
        if step % REFRESH == 0:
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


def _baselines(splits: int) -> dict[str, Baseline]:
    """The random backbone, and the better of the controls with the two recipes' lengths."""
    scores: dict[str, list[float]] = {"random backbone": [], "noise only": []}
    for seed in range(splits):
        sets = split(seed)
        scores["random backbone"].append(probe(build_backbone(SPEC, seed), *sets))
        scores["noise only"].append(max(probe(shake(recipe, seed), *sets) for recipe in set(RECIPES.values())))
    return {name: Baseline(name, tuple(values), float(np.mean(values))) for name, values in scores.items()}


def as_markdown(trials: Sequence[Trial], baselines: Sequence[Baseline]) -> str:
    """A table, the baselines first."""
    lines = [
        "| | steps | probe | by split | above random | above noise only | seconds |",
        "|---|---|---|---|---|---|---|",
        *(f"| {each.name} | | {each.accuracy:.3f} | {_listed(each.scores)} | | | |" for each in baselines),
        *(
            f"| `{each.name}` | {each.steps} | {each.accuracy:.3f} | {_listed(each.scores)} | "
            f"{_told(each.over_random)} | {_told(each.over_noise)} | {each.seconds:.0f} |"
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
    baselines = _baselines(asked.splits)
    trials = []
    for name in asked.names or RECIPES:
        trials.append(
            try_objective(name, asked.splits, baselines["random backbone"].scores, baselines["noise only"].scores)
        )
        print(f"{name}: {trials[-1].accuracy:.3f}, {trials[-1].seconds:.0f} s a split", file=sys.stderr)
    table = as_markdown(trials, list(baselines.values()))
    if asked.write:
        _write(asked.write, table)
    told = {"baselines": [asdict(each) for each in baselines.values()], "trials": [asdict(each) for each in trials]}
    print(json.dumps(told) if asked.json else table)


if __name__ == "__main__":
    main()
