"""A training step under DP: its time and memory over an ordinary step's, for this engine and for Opacus's.

    python -m benchmarks.dpsgd --json [--models tiny small] [--repeats 7] [--threads 2] [--device cpu]

Every step is forward, backward and, but for the ordinary one, a sum of clipped gradients over all parameters. The kinds
of step take turns within one process, so that whatever else slows the machine slows all of them; ratios are of medians.
Opacus takes no parameters outside of layers, so they are frozen in its steps alone. `noised` adds secure noise to this
engine's, `noised_by_four` noise of four draws a value. Memory is what a fresh process's peak grows by during steps, in
one process for each kind.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import GradSampleHooks, GradSampleHooksFastGradientClipping
from torch import Tensor

from privfm.dp.clipping import ClippingEngine
from privfm.dp.coins import SystemCoins
from privfm.dp.mechanism import StepMechanism
from privfm.models import BackboneSpec, build_backbone

CLIP_NORM = 0.1


@dataclass(frozen=True)
class Setting:
    """A backbone and its batch."""

    name: str
    image_size: int
    patch_size: int
    units: int


SETTINGS = {
    "tiny": Setting("vit_tiny_patch16_224", 64, 8, 64),
    "small": Setting("vit_small_patch16_224", 64, 8, 32),
    "base": Setting("vit_base_patch16_224", 224, 16, 64),
}


class Steps:
    """One backbone and batch, and every kind of step on them.

    Args:
        views: images of a unit; there are as many units fewer.
    """

    def __init__(self, setting: Setting, device: str, views: int = 1) -> None:
        torch.manual_seed(0)
        spec = BackboneSpec(setting.name, image_size=setting.image_size, patch_size=setting.patch_size)
        self.network = build_backbone(spec, seed=0).to(device).train()
        size = setting.image_size
        images = torch.randn(setting.units, spec.channels, size, size)
        self.images, self.views, self.units = images.to(device), views, setting.units // views
        self.synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None

    def losses(self) -> Tensor:
        """One value a unit: the mean over its views."""
        return self.network(self.images).square().mean(dim=1).reshape(self.units, self.views).mean(dim=1)

    def plain(self) -> None:
        self._forget()
        self.losses().mean().backward()  # type: ignore[no-untyped-call]

    def one_pass(self) -> None:
        self._forget()
        engine = ClippingEngine(self.network, CLIP_NORM)
        engine.add(self.losses, self.units)
        engine.finish()

    def noised(self, terms: int = 1) -> None:
        self._forget()
        engine = ClippingEngine(self.network, CLIP_NORM)
        engine.add(self.losses, self.units)
        mechanism = StepMechanism(0.5, 2 * self.units, CLIP_NORM, 1.0, noise_terms=terms)
        mechanism.release(engine.finish(), SystemCoins().stream("noise"))

    def noised_by_four(self) -> None:
        self.noised(terms=4)

    def opacus_hooks(self) -> None:
        with self._layers_alone():
            self._opacus_hooks()

    def _opacus_hooks(self) -> None:
        hooks = GradSampleHooks(self.network, loss_reduction="sum", strict=False)
        self._forget()
        self.losses().sum().backward()  # type: ignore[no-untyped-call]
        parameters = self._parameters()
        norms = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)
        factors = (CLIP_NORM / norms).clamp(max=1.0)
        for parameter in parameters:
            parameter.grad = torch.einsum("n,n...->...", factors, parameter.grad_sample)
            parameter.grad_sample = None
        hooks.cleanup()

    def opacus_ghost(self) -> None:
        with self._layers_alone():
            self._opacus_ghost()

    def _opacus_ghost(self) -> None:
        hooks = GradSampleHooksFastGradientClipping(
            self.network, loss_reduction="sum", strict=False, max_grad_norm=CLIP_NORM
        )
        self._forget()
        losses = self.losses()
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        factors = hooks.get_clipping_coef()
        self._forget()
        hooks.disable_hooks()
        (losses * factors).sum().backward()
        hooks.cleanup()

    @contextmanager
    def _layers_alone(self) -> Iterator[None]:
        """Freeze what sits beside other modules: Opacus would take the whole network for one layer."""
        loose = [
            parameter
            for module in self.network.modules()
            if any(True for child in module.children() for _ in child.parameters())
            for parameter in module.parameters(recurse=False)
        ]
        for parameter in loose:
            parameter.requires_grad_(False)
        yield
        for parameter in loose:
            parameter.requires_grad_(True)

    def _parameters(self) -> list[Any]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _forget(self) -> None:
        for parameter in self._parameters():
            parameter.grad = None


KINDS = ("plain", "one_pass", "noised", "noised_by_four", "opacus_hooks", "opacus_ghost")


def times(steps: Steps, repeats: int) -> dict[str, float]:
    """Median milliseconds of each kind of step, taking turns."""
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats + 1):
        for kind in KINDS:
            start = time.perf_counter()
            getattr(steps, kind)()
            steps.synchronise()
            taken[kind].append(1e3 * (time.perf_counter() - start))
    return {kind: statistics.median(values[1:]) for kind, values in taken.items()}


def views_ratio(setting: Setting, device: str, repeats: int) -> float:
    """What a view costs in a unit of eight over what it costs alone, as many images in both."""
    alone, eight = Steps(setting, device), Steps(setting, device, views=8)
    taken: dict[str, list[float]] = {"alone": [], "eight": []}
    for _ in range(repeats + 1):
        for name, steps in (("alone", alone), ("eight", eight)):
            start = time.perf_counter()
            steps.one_pass()
            steps.synchronise()
            taken[name].append(time.perf_counter() - start)
    return statistics.median(taken["eight"][1:]) / statistics.median(taken["alone"][1:])


def peak_mib(model: str, kind: str, threads: int) -> float:
    """What a fresh process's peak memory grows by during three steps, in MiB. Linux; on CPU."""
    command = [sys.executable, "-m", "benchmarks.dpsgd", "--models", model, "--memory-of", kind]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def growth_mib(step: Callable[[], None]) -> float:
    """What three steps add to the peak, after building the model gave back what it no longer needs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def measure(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    setting, device = SETTINGS[model], arguments.device
    medians = times(Steps(setting, device), arguments.repeats)
    row: dict[str, Any] = {
        "model": setting.name,
        "image_size": setting.image_size,
        "patch_size": setting.patch_size,
        "batch": setting.units,
        "ms": {kind: round(value, 1) for kind, value in medians.items()},
        "over_plain": {kind: round(value / medians["plain"], 2) for kind, value in medians.items()},
        "eight_views_over_one": round(views_ratio(setting, device, arguments.repeats), 2),
    }
    if arguments.memory and device == "cpu":
        memory = {kind: peak_mib(model, kind, arguments.threads) for kind in KINDS}
        row["mib"] = {kind: round(value, 1) for kind, value in memory.items()}
        row["memory_over_plain"] = {kind: round(value / memory["plain"], 2) for kind, value in memory.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dpsgd", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=["tiny", "small"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # Opacus's, of its first layer
    if arguments.memory_of:
        print(growth_mib(getattr(Steps(SETTINGS[arguments.models[0]], "cpu"), arguments.memory_of)))
        return
    rows = []
    for model in arguments.models:
        rows.append(measure(model, arguments))
        shown = {
            key: rows[-1][key] for key in ("over_plain", "eight_views_over_one", "memory_over_plain") if key in rows[-1]
        }
        print(f"{model}: {shown}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        where = {
            "cpu": platform.processor() or platform.machine(),
            "threads": arguments.threads,
            "torch": torch.__version__,
        }
        print(json.dumps({"machine": where, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
