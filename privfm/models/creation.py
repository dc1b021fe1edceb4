"""Making the timm model that a spec names, from public arguments alone.

The arguments found here are the ones that `config.json` stores: `timm.create_model(name, **arguments)` builds the
same modules, so that an exported state dict loads with `strict=True`.
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch import nn

from privfm.errors import ModelError
from privfm.models.spec import BackboneSpec
from privfm.models.torchvision_shim import timm

__all__ = ["MODEL_FAULTS", "batch_coupled", "create_timm", "first_line"]

#: What timm's constructors and forward passes raise when arguments and model do not fit each other.
MODEL_FAULTS = (
    TypeError,
    ValueError,
    RuntimeError,
    AssertionError,
    KeyError,
    IndexError,
    AttributeError,
    ZeroDivisionError,
)

#: Sound norms to put in the place of batch norm, in the order of preference.
_NORMS = ("groupnorm", "groupnorm1", "layernorm2d", "layernorm")

_QUOTED = re.compile(r"'(\w+)'")


def create_timm(spec: BackboneSpec) -> tuple[nn.Module, dict[str, Any]]:
    """The timm model of a spec and the arguments it was created with.

    Class tokens are left out and pooling is the mean where the model allows; batch norm is replaced by group norm
    through the model's own `norm_layer` argument.

    Raises:
        ModelError: the name is unknown, a size does not fit, or batch norm cannot be replaced.
    """
    _check_name(spec.name)
    network, arguments = _create(spec.name, _required(spec), _wished(spec))
    coupled = batch_coupled(network)
    if not coupled:
        return network, arguments
    for norm in _NORMS:
        try:
            network, arguments = _create(spec.name, {**_required(spec), "norm_layer": norm}, _wished(spec))
        except ModelError:
            continue
        if not batch_coupled(network) and _runs(network, spec):
            return network, arguments
    raise ModelError(
        f"backbone {spec.name}: {coupled} couples the images of a batch and the model lets nothing take its place; "
        "choose one with layer or group norm, such as a vit, convnext or resnet"
    )


def batch_coupled(network: nn.Module) -> str | None:
    """The first module whose output for one image depends on the others, as `path (Type)`; None if there is none."""
    for path, module in network.named_modules():
        name = type(module).__name__
        frozen = "Frozen" in name
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or (
            not frozen and any(mark in name for mark in ("BatchNorm", "EvoNorm2dB", "InplaceAbn"))
        ):
            return f"{path} ({name})"
    return None


def first_line(error: BaseException) -> str:
    """An exception's text in one short line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _check_name(name: str) -> None:
    known = timm.list_models()
    if name in known:
        return
    if any(mark in name for mark in ":/\\."):
        raise ModelError(
            f"backbone {name}: give the bare name of a timm model, without hub, path or weight tag; "
            "start from weights with --init FILE.safetensors"
        )
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists the names"
    raise ModelError(f"backbone {name}: timm knows no such model; {hint}")


def _required(spec: BackboneSpec) -> dict[str, Any]:
    asked = {
        "patch_size": spec.patch_size,
        "embed_dim": spec.width,
        "depth": spec.depth,
        "num_heads": spec.heads,
    }
    return {
        "num_classes": 0,
        "in_chans": spec.channels,
        **{key: value for key, value in asked.items() if value is not None},
    }


def _wished(spec: BackboneSpec) -> dict[str, Any]:
    return {"img_size": spec.image_size, "global_pool": "avg", "class_token": False, "fc_norm": False}


def _create(name: str, required: dict[str, Any], wished: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Create with all required arguments and as many of the wished ones as the model takes."""
    while True:
        arguments = {**required, **wished}
        try:
            return timm.create_model(name, pretrained=False, **arguments), arguments
        except MODEL_FAULTS as error:
            refused = _refused(error)
            if not refused & set(wished):
                raise ModelError(f"backbone {name}: {_explain(error, refused & set(required))}") from error
            wished = {key: value for key, value in wished.items() if key not in refused}


def _refused(error: Exception) -> set[str]:
    """The arguments that a constructor's complaint names."""
    text = str(error)
    return set(_QUOTED.findall(text)) if "unexpected keyword argument" in text else set()


def _explain(error: Exception, refused: set[str]) -> str:
    if not refused:
        return f"timm cannot build it with these sizes: {first_line(error)}"
    options = {"embed_dim": "width", "num_heads": "heads", "in_chans": "channels"}
    keys = ", ".join(sorted(options.get(key, key) for key in refused))
    return f"it takes no {keys}; leave {keys} out or choose another backbone"


def _runs(network: nn.Module, spec: BackboneSpec) -> bool:
    image = torch.zeros(2, spec.channels, spec.image_size, spec.image_size)
    try:
        with torch.no_grad():
            network(image)
    except MODEL_FAULTS:
        return False
    return True
