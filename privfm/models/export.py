"""Backbones on disk: safetensors for the weights, timm's own form of config.json for the rest."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from privfm.errors import ModelError
from privfm.files import write_atomic
from privfm.models.backbone import Backbone, build_backbone
from privfm.models.checkpoint import adapt
from privfm.models.lora import load_without_adapters, merged_state
from privfm.models.spec import BackboneSpec

__all__ = ["load_backbone", "load_checkpoint", "read_tensors", "save_backbone"]

WEIGHTS, CONFIG = "model.safetensors", "config.json"

#: A file above this is refused before it is read.
MAX_BYTES = 4 * 2**30
_MAX_CONFIG_BYTES = 2**20


def save_backbone(backbone: Backbone, directory: Path) -> None:
    """Write model.safetensors and config.json, each whole or not at all.

    `timm.create_model(config["architecture"], **config["model_args"])` builds the modules, and the weights load into
    them with `strict=True`; `timm.create_model("local-dir:DIRECTORY", pretrained=True)` does both. Adapters are merged
    into the layers that they adapt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in merged_state(backbone.timm).items()}
    write_atomic(directory / WEIGHTS, to_bytes(weights, metadata={"format": "pt"}))
    config = json.dumps(_config(backbone), indent=2) + "\n"
    write_atomic(directory / CONFIG, config.encode())


def load_backbone(path: Path) -> Backbone:
    """The backbone that `save_backbone` wrote; `path` is the directory or one of the two files, however it is named.

    Raises:
        ModelError: a file is missing, damaged or of another kind, or the weights do not fit the description.
    """
    directory = path if path.is_dir() else path.parent
    weights = path if path.is_file() and path.suffix == ".safetensors" else directory / WEIGHTS
    backbone = build_backbone(_read_spec(directory / CONFIG), seed=0)
    _load_strictly(backbone, read_tensors(weights), weights)
    return backbone


def load_checkpoint(backbone: Backbone, file: Path) -> tuple[str, ...]:
    """Start a backbone from weights in timm's naming; returns what had to be adapted, one line each.

    A classifier is left out; class and register tokens too where the backbone has none; positions, patch size and
    colour channels are resampled to the backbone's. Everything else must fit exactly.

    Raises:
        ModelError: the file is no safetensors file, is too large, or a weight is missing, unknown or misshapen.
    """
    tensors, notes = adapt(backbone, read_tensors(file))
    _load_strictly(backbone, tensors, file)
    return notes


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ModelError: it is missing, too large or damaged, or another format.
    """
    if file.suffix != ".safetensors":
        raise ModelError(f"{file}: weights must be a .safetensors file; pickled formats are never read")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file}: {file.stat().st_size} bytes is above the limit of {MAX_BYTES}")
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: not a readable safetensors file: {error}") from error


def _config(backbone: Backbone) -> dict[str, Any]:
    spec = backbone.spec
    source = backbone.timm.pretrained_cfg
    size = [spec.channels, spec.image_size, spec.image_size]
    return {
        "architecture": spec.name,
        "num_classes": 0,
        "num_features": backbone.width,
        "global_pool": "avg",
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            "tag": "privfm",
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": bool(source.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5] * spec.channels,
            "std": [0.25] * spec.channels,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": source.get("first_conv"),
            "classifier": source.get("classifier"),
        },
        "privfm": {**asdict(spec), "input": "each image less its mean, over its standard deviation"},
    }


def _read_spec(file: Path) -> BackboneSpec:
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{file}: too large for a description of a model")
        written = json.loads(file.read_text())["privfm"]
        return BackboneSpec(**{key: written[key] for key in BackboneSpec.__dataclass_fields__})
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file; give a folder that holds {WEIGHTS} and {CONFIG}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: does not describe a privfm backbone: {error}") from error


def _load_strictly(backbone: Backbone, tensors: dict[str, Tensor], file: Path) -> None:
    expected = merged_state(backbone.timm)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ModelError(f"{file}: has no weight {name}, which {backbone.spec.name} needs")
        if name not in expected:
            raise ModelError(f"{file}: weight {name} is unknown to {backbone.spec.name}; was it another backbone's?")
        if tensors[name].shape != expected[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, {backbone.spec.name} needs {tuple(expected[name].shape)}"
            raise ModelError(f"{file}: weight {name} has shape {shapes}")
        if not bool(tensors[name].isfinite().all()):
            raise ModelError(f"{file}: weight {name} is not finite")
    load_without_adapters(backbone.timm, tensors)
