"""Tries timm's families: is a backbone accepted, and is its clipped sum the one of a plain loop over units?

    python -m benchmarks.backbones [--json] [--write docs/backbones.md] [NAME@SIZE ...]

For each backbone three units of two views are clipped to half of the smallest norm, in single precision, in training
mode. The error is the norm of (engine's sum - loop's sum) over that of the loop's sum; the second opinion is the same
with functorch asked about every layer. `--write` replaces the table between the file's two marks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from privfm.errors import ModelError
from privfm.gradients import Factors, unit_shares
from privfm.models import Backbone, BackboneSpec, build_backbone

FAMILIES = (
    "vit_tiny_patch16_224@64", "test_vit4@32", "vit_tiny_r_s16_p8_224@64", "deit3_small_patch16_224@64",
    "beit_base_patch16_224@32", "eva02_tiny_patch14_224@56", "test_vit_relpos@32", "cait_xxs24_224@64",
    "swin_tiny_patch4_window7_224@64", "swinv2_tiny_window8_256@64", "hiera_tiny_224@64", "mvitv2_tiny@64",
    "pvt_v2_b0@64", "twins_svt_small@64", "nest_tiny@64", "coat_lite_tiny@64", "davit_tiny@64", "caformer_s18@64",
    "poolformer_s12@64", "mixer_s32_224@64", "resmlp_12_224@64", "gmlp_s16_224@64", "focalnet_tiny_srf@64",
    "convnext_atto@64", "convnextv2_atto@64", "edgenext_xx_small@64", "mambaout_femto@64", "resnet18@64",
    "seresnet50@64", "resnetv2_50@64", "regnety_002@64", "densenet121@64", "efficientnet_b0@64", "test_nfnet@64",
    "mobilenetv3_small_100@64", "ghostnet_100@64", "levit_128s@64", "xcit_nano_12_p8_224@64", "crossvit_tiny_240@240",
)  # fmt: skip
UNITS, VIEWS = 3, 2
MARKS = ("<!-- tried: begin -->", "<!-- tried: end -->")


@dataclass(frozen=True)
class Trial:
    """What came of trying a backbone.

    Args:
        name, image_size: of the backbone.
        parameters, trained: numbers that it holds, and that can train.
        error: of the clipped sum, relative.
        second_opinion: the same with functorch for every layer; None where functorch cannot.
        ghost: share of the trained numbers whose norms come from the ghost identity.
        notes: what was changed about it.
        refused: why, or None.
    """

    name: str
    image_size: int
    parameters: int = 0
    trained: int = 0
    error: float | None = None
    second_opinion: float | None = None
    ghost: float = 0.0
    notes: tuple[str, ...] = ()
    refused: str | None = None


def try_backbone(name: str, image_size: int) -> Trial:
    """Build it, and compare the engine with a loop."""
    try:
        backbone = build_backbone(BackboneSpec(name, image_size=image_size), seed=0)
    except ModelError as error:
        return Trial(name, image_size, refused=str(error).removeprefix(f"backbone {name}: "))
    backbone.train()
    images = torch.randn(UNITS * VIEWS, 1, image_size, image_size, generator=torch.Generator().manual_seed(0))
    expected, clip_norm = _loop(backbone, images)
    counts = [p.numel() for p in backbone.parameters() if p.requires_grad]
    shares = unit_shares(backbone, lambda: _losses(backbone, images), UNITS)
    ghost = sum(n for n, share in zip(counts, shares, strict=True) if isinstance(share, Factors)) / sum(counts)
    return Trial(
        name,
        image_size,
        parameters=sum(p.numel() for p in backbone.parameters()),
        trained=sum(counts),
        error=_error(_clipped(backbone, images, clip_norm, by_rule=True), expected),
        second_opinion=_second_opinion(backbone, images, clip_norm, expected),
        ghost=ghost,
        notes=backbone.notes,
    )


def _losses(backbone: Backbone, images: Tensor) -> Tensor:
    return backbone.features(images).square().mean(dim=1).reshape(-1, VIEWS).mean(dim=1)


def _loop(backbone: Backbone, images: Tensor) -> tuple[Tensor, float]:
    """The definition: a backward pass a unit, clipped to half of the least norm, summed in double precision."""
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    rows = []
    for unit in range(UNITS):
        loss = _losses(backbone, images[unit * VIEWS : (unit + 1) * VIEWS]).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double())
    clip_norm = min(float(row.norm()) for row in rows) / 2
    return torch.stack([row * clip_norm / row.norm() for row in rows]).sum(dim=0), clip_norm


def _clipped(backbone: Backbone, images: Tensor, clip_norm: float, *, by_rule: bool) -> Tensor:
    shares = unit_shares(backbone, lambda: _losses(backbone, images), UNITS, by_rule=by_rule)
    norms = torch.stack([share.squared_norms()[0] for share in shares]).sum(dim=0).sqrt()
    factors = (clip_norm / norms.clamp(min=clip_norm)).float()
    return torch.cat([share.weighted_sum(factors) for share in shares])


def _second_opinion(backbone: Backbone, images: Tensor, clip_norm: float, expected: Tensor) -> float | None:
    try:
        return _error(_clipped(backbone, images, clip_norm, by_rule=False), expected)
    except (RuntimeError, NotImplementedError, ModelError):
        return None


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def as_markdown(trials: Sequence[Trial]) -> str:
    """A table, the accepted ones first."""
    head = "| backbone | pixels | trains | of | error | by functorch | ghost norms | engine, or why not |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    accepted = [trial for trial in trials if trial.refused is None]
    lines += [_row(trial) for trial in accepted]
    lines += [
        f"| `{trial.name}` | {trial.image_size} | | | | | | refused: {trial.refused} |"
        for trial in trials
        if trial.refused is not None
    ]
    exact = sum(trial.error is not None and trial.error < 1e-5 for trial in accepted)
    lines += ["", f"{len(accepted)} of {len(trials)} accepted, {exact} with an error below 1e-5."]
    return "\n".join(lines)


def _row(trial: Trial) -> str:
    second = "-" if trial.second_opinion is None else f"{trial.second_opinion:.0e}"
    fixed = trial.parameters - trial.trained
    words = "one pass" if not fixed else f"one pass; {fixed:,} numbers fixed whose use is not understood"
    return (
        f"| `{trial.name}` | {trial.image_size} | {trial.trained:,} | {trial.parameters:,} | {trial.error:.0e} | "
        f"{second} | {trial.ghost:.0%} | {words} |"
    )


def _trials(names: Sequence[str]) -> Iterator[Trial]:
    for each in names:
        name, _, size = each.partition("@")
        started = time.monotonic()
        trial = try_backbone(name, int(size or 64))
        told = f"{trial.error:.1e}" if trial.error is not None else trial.refused
        print(f"{name}: {told} ({time.monotonic() - started:.0f} s)", file=sys.stderr)
        yield trial


def _write(path: Path, table: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, found, after = rest.partition(MARKS[1])
    if not found:
        raise SystemExit(f"{path}: has no marks {MARKS[0]} and {MARKS[1]} to put the table between")
    path.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


def main() -> None:
    """Try, and print or write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=FAMILIES, metavar="NAME@SIZE")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this file")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    trials = list(_trials(asked.names))
    if asked.write:
        _write(asked.write, as_markdown(trials))
    print(json.dumps([asdict(trial) for trial in trials]) if asked.json else as_markdown(trials))


if __name__ == "__main__":
    main()
