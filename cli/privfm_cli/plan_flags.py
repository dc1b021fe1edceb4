"""Flags that stand for keys of a plan. They override the plan file, which overrides the defaults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from privfm.errors import PlanError

if TYPE_CHECKING:
    from privfm.plan import Plan

__all__ = ["PLAN_FLAGS", "SPEED_FLAGS", "Flags", "PlanFlag", "check_unchanged", "plan_from", "takes_plan_flags"]

NOMINAL_UNITS = "--nominal-units"

Flags = dict[str, Any]
"""Values by flag, of the flags that were typed: `{"--epsilon": 4.0}`."""


@dataclass(frozen=True)
class PlanFlag:
    """One flag, the key that it sets, and the key's default in words (a test holds it to the plan's)."""

    flag: str
    key: str
    kind: type
    panel: str
    help: str
    default: str

    @property
    def name(self) -> str:
        return self.flag.split("/")[0].removeprefix("--").replace("-", "_")


PLAN_FLAGS = (
    PlanFlag("--epsilon", "privacy.epsilon", float, "Privacy", "What each hospital spends at most.", "8.0"),
    PlanFlag("--delta", "privacy.delta", float, "Privacy", "Chance that the guarantee may fail with.", "1e-05"),
    PlanFlag("--unit", "privacy.unit", str, "Privacy", "Whose presence is hidden: patient or image.", "patient"),
    PlanFlag("--sample-rate", "privacy.sample_rate", float, "Privacy", "A unit's chance to be drawn in a step.", "0.5"),
    PlanFlag("--clip-norm", "privacy.clip_norm", float, "Privacy", "L2 bound on one unit's gradient.", "None"),
    PlanFlag(
        "--clip-quantile",
        "privacy.clip_quantile",
        float,
        "Privacy",
        "Adapt the clip norm so that this share of gradients is within; counted privately.",
        "None",
    ),
    PlanFlag(
        "--dp/--no-dp",
        "privacy.dp",
        bool,
        "Privacy",
        "Without it there is no noise and no guarantee: for research on images of nobody's.",
        "True",
    ),
    PlanFlag("--data", "data.source", str, "Data", "tiles, phantom, a folder, or a MedMNIST .npz file.", "tiles"),
    PlanFlag("--image-size", "data.image_size", int, "Data", "Pixels a side that the backbone sees.", "32"),
    PlanFlag("--channels", "data.channels", int, "Data", "1 grey, 3 colour.", "1"),
    PlanFlag("--patients", "data.patients", int, "Data", "How many patients phantom draws.", "None"),
    PlanFlag(
        NOMINAL_UNITS,
        "data.nominal_units",
        str,
        "Data",
        "Declared patients of every hospital, such as 60, or of each: north=60,south=40.",
        "None",
    ),
    PlanFlag("--hospitals", "data.hospitals", int, "Data", "Hospitals a built-in set is spread over.", "5"),
    PlanFlag("--rounds", "federation.rounds", int, "Training", "Rounds of the federation.", "10"),
    PlanFlag("--local-steps", "federation.local_steps", int, "Training", "Noisy steps of a hospital in a round.", "2"),
    PlanFlag("--retry-rounds", "federation.retry_rounds", int, "Training", "Rounds a crash may cost.", "2"),
    PlanFlag("--strategy", "federation.strategy", str, "Training", "fedavg, fedavgm or fedadam.", "fedavg"),
    PlanFlag("--optimizer", "optimizer.name", str, "Training", "A hospital's own: sgd, adam or adam-bc.", "adam"),
    PlanFlag("--lr", "optimizer.learning_rate", float, "Training", "Local step.", "0.01"),
    PlanFlag("--server-lr", "federation.server_learning_rate", float, "Training", "Step of the server.", "1.0"),
    PlanFlag("--seed", "seed", int, "Training", "Public randomness only; noise and draws stay secret.", "0"),
    PlanFlag("--backbone", "model.backbone", str, "Model", "A timm model's name; without it a small ViT.", "None"),
    PlanFlag("--patch-size", "model.patch_size", int, "Model", "Pixels a side of a patch.", "None"),
    PlanFlag("--init", "model.init", str, "Model", "public, scratch, or a .safetensors file.", "public"),
    PlanFlag("--trainable", "model.trainable", str, "Model", "all, last-K, norm-bias or lora.", "norm-bias"),
    PlanFlag(
        "--objective", "objective.name", str, "Model", "mae, simmim, simsiam, byol, dino or simclr: the loss.", "mae"
    ),
    PlanFlag("--probe/--no-probe", "evaluation.probe", bool, "Evaluation", "Probe held-out patients.", "None"),
    PlanFlag(
        "--local-loss/--no-local-loss",
        "evaluation.local_loss",
        bool,
        "Evaluation",
        "Show the hospitals' own mean loss each round: noised, masked, charged as one step.",
        "False",
    ),
    PlanFlag("--device", "performance.device", str, "This machine", "auto, cpu, cuda or cuda:N.", "auto"),
    PlanFlag("--precision", "performance.precision", str, "This machine", "float32 or bfloat16.", "float32"),
    PlanFlag("--threads", "performance.threads", int, "This machine", "Threads of torch; default all cores.", "None"),
)

SPEED_FLAGS = frozenset(flag.flag for flag in PLAN_FLAGS if flag.key.startswith("performance."))
"""What may change when a run goes on: it is not part of the plan's hash."""


def takes_plan_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with every flag of the plan added; it is called with `flags` holding those that were typed."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())
    added = [_parameter(flag) for flag in PLAN_FLAGS]

    @functools.wraps(command)
    def with_flags(**arguments: Any) -> None:
        typed = {flag.flag: arguments.pop(flag.name) for flag in PLAN_FLAGS}
        command(**arguments, flags={flag: value for flag, value in typed.items() if value is not None})

    kept = [parameter for parameter in own if parameter.name != "flags"]
    with_flags.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*kept, *added)]
    )
    with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in (*kept, *added)}
    return with_flags


def _parameter(flag: PlanFlag) -> inspect.Parameter:
    default = "" if flag.default == "None" else f" [default: {flag.default}]"
    option = typer.Option(flag.flag, help=flag.help + default, rich_help_panel=flag.panel, show_default=False)
    return inspect.Parameter(
        flag.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[flag.kind | None, option]
    )


def plan_from(path: Path | None, flags: Flags) -> Plan:
    """Return the plan of a file (or the defaults) with `flags` set; PlanError names the file's key, or the flag."""
    from privfm.plan import parse_plan, read_plan

    content = read_plan(path) if path is not None else {}
    plan = parse_plan(content, str(path))
    for flag in PLAN_FLAGS:
        if flag.flag in flags:
            _set(content, flag.key, _read(flag, flags[flag.flag]))
            plan = parse_plan(content, flag.flag)
    return plan


def check_unchanged(stored: Plan, flags: Flags) -> None:
    """Raise PlanError when a flag asks a run that goes on for something else than its stored plan says."""
    for flag in PLAN_FLAGS:
        if flag.flag in flags and flag.flag not in SPEED_FLAGS:
            value, asked = _get(stored, flag.key), _read(flag, flags[flag.flag])
            if asked not in (value, {each.id: each.nominal_units for each in stored.hospitals}):
                said = f"{flag.flag} {flags[flag.flag]}"
                raise PlanError(f"{said}: the run's plan says {value}; leave the flag out, or start anew")


def _read(flag: PlanFlag, value: Any) -> Any:
    """Return the key's value; one flag alone is written otherwise than its key."""
    return _nominal_units(value) if flag.flag == NOMINAL_UNITS else value


def _nominal_units(text: str) -> int | dict[str, int]:
    """Return what is declared for every hospital, or for each.

    Example:
        >>> _nominal_units("60"), _nominal_units("north=60,south=40")
        (60, {'north': 60, 'south': 40})
    """
    pairs = [part.strip().rpartition("=") for part in text.split(",")]
    names, numbers = [name for name, _, _ in pairs], [number for _, _, number in pairs]
    if not all(number.isascii() and number.isdecimal() for number in numbers) or len(set(names)) < len(names):
        raise PlanError(f"{NOMINAL_UNITS} {text}: give a number, or one for each hospital as in north=60,south=40")
    return int(numbers[0]) if names == [""] else dict(zip(names, map(int, numbers), strict=True))


def _set(content: dict[str, Any], key: str, value: object) -> None:
    if isinstance(value, dict):
        _declare(content, value)
        return
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = value


def _declare(content: dict[str, Any], units: dict[str, int]) -> None:
    """Put each hospital's declared units into the plan's hospitals; hospitals that it does not list yet are added."""
    listed = {hospital.get("id"): hospital for hospital in content.setdefault("hospitals", [])}
    for name, number in units.items():
        if name in listed:
            listed[name]["nominal_units"] = number
        else:
            content["hospitals"].append({"id": name, "nominal_units": number})


def _get(plan: Plan, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), plan)
