"""A timm model made ready for training under differential privacy."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from privfm.errors import ModelError
from privfm.models.creation import MODEL_FAULTS, create_timm, first_line
from privfm.models.grad_samplers import register_rules
from privfm.models.inplace import OutOfPlace
from privfm.models.preparation import prepare
from privfm.models.soundness import Verdict, examine
from privfm.models.spec import BackboneSpec
from privfm.models.torchvision_shim import timm

__all__ = ["Backbone", "build_backbone"]

_VisionTransformer = timm.models.vision_transformer.VisionTransformer


class Backbone(nn.Module):
    """A timm model that treats every image alone, and the two views of it that objectives need.

    Guarantees: the output for an image does not depend on the other images of the batch, in training mode too; no
    module changes its own state in a forward pass; nothing draws random numbers; every parameter that requires a
    gradient belongs to a module that sees the images in dimension 0, in order, so that hooks find its gradient per
    image.

    Attributes:
        timm: the timm model, without a classifier.
        spec: what was asked for.
        model_args: arguments for `timm.create_model(spec.name, **model_args)`.
        width: length of a pooled feature.
        map_width, grid: channels and (rows, columns) of the feature map.
        drops_tokens: whether `tokens` is available.
        fixed: names of the parameters that never train, relative to this module.
        notes: what was changed about timm's model, one line each.
    """

    timm: Any  # a timm model: an nn.Module whose further attributes differ by family

    def __init__(
        self, network: nn.Module, spec: BackboneSpec, model_args: dict[str, Any], notes: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.timm = network
        self.spec = spec
        self.model_args = model_args
        self.notes = notes
        self.drops_tokens = _is_plain_vit(network)
        with torch.no_grad():
            blank = torch.zeros(1, spec.channels, spec.image_size, spec.image_size)
            self.width = int(self.features(blank).shape[1])
            self.map_width, *grid = self.feature_map(blank).shape[1:]
        self.grid = (int(grid[0]), int(grid[1]))
        self.fixed: frozenset[str] = frozenset()

    def fix(self, names: frozenset[str]) -> None:
        """Take these parameters out of training for good."""
        self.fixed |= names
        for name, value in self.named_parameters():
            if name in names:
                value.requires_grad_(False)

    def features(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """One pooled feature per image."""
        with OutOfPlace():
            return cast(Tensor, self.timm(images))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        return self.features(images)

    def feature_map(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d rows columns"]:
        """The features before pooling, on their grid."""
        with OutOfPlace():
            return self._as_map(self.timm.forward_features(images))

    def tokens(
        self, images: Float[Tensor, "b c h w"], keep: Int[Tensor, "b kept"] | None = None
    ) -> Float[Tensor, "b tokens d"]:
        """Features of the patches in `keep` (all when None), computed from those patches alone.

        Args:
            keep: for every image, indices into its patches in row order.

        Raises:
            ValueError: the backbone is no plain vision transformer (see `drops_tokens`).
        """
        if not self.drops_tokens:
            raise ValueError(f"{self.spec.name} cannot leave patches out; use feature_map")
        vit = self.timm
        tokens = vit._pos_embed(vit.patch_embed(images))
        prefix = vit.num_prefix_tokens
        if keep is not None:
            index = (keep + prefix).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            tokens = torch.cat([tokens[:, :prefix], tokens.gather(1, index)], dim=1)
        tokens = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return cast(Tensor, tokens[:, prefix:])

    def _as_map(self, output: Tensor) -> Tensor:
        if output.dim() == 3:
            patches = output[:, getattr(self.timm, "num_prefix_tokens", 0) :]
            rows = round(patches.shape[1] ** 0.5)
            return patches.transpose(1, 2).reshape(len(patches), -1, rows, patches.shape[1] // rows)
        if output.dim() == 4 and getattr(self.timm, "output_fmt", "NCHW") == "NHWC":
            return output.permute(0, 3, 1, 2)
        if output.dim() == 4:
            return output
        raise ModelError(f"backbone {self.spec.name}: its features have no grid; choose another backbone")


def build_backbone(spec: BackboneSpec, seed: int) -> Backbone:
    """The backbone of a spec with freshly drawn weights; the same seed gives the same weights.

    The global random state of torch is left as it was.

    Raises:
        ModelError: the name is unknown, or the model cannot be made sound; says why.

    >>> backbone = build_backbone(BackboneSpec("test_vit", image_size=32, patch_size=8), seed=0)
    >>> backbone.features(torch.zeros(2, 1, 32, 32)).shape
    torch.Size([2, 64])
    """
    register_rules()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, arguments = create_timm(spec)
    notes = prepare(network)
    backbone = _wrap(network, spec, arguments, notes)
    if spec not in _VERDICTS:
        _VERDICTS[spec] = examine(backbone, (spec.channels, spec.image_size, spec.image_size), spec.name)
    unreachable = _VERDICTS[spec].unreachable
    untrained = frozenset(name for name, value in backbone.named_parameters() if not value.requires_grad)
    backbone.fix(untrained | unreachable)
    backbone.notes += tuple(f"{name}: fixed, its gradient per image is unknown" for name in sorted(unreachable))
    return backbone


#: What trying a model found, so that building it again costs nothing.
_VERDICTS: dict[BackboneSpec, Verdict] = {}


def _wrap(network: nn.Module, spec: BackboneSpec, arguments: dict[str, Any], notes: tuple[str, ...]) -> Backbone:
    try:
        return Backbone(network, spec, arguments, notes)
    except MODEL_FAULTS as error:
        raise ModelError(
            f"backbone {spec.name}: does not run on {spec.image_size}-pixel images: {first_line(error)}"
        ) from error


def _is_plain_vit(network: nn.Module) -> bool:
    """Whether the forward pass is timm's plain vision transformer's, so that patches can be left out."""
    kind = type(network)
    same = ("forward_features", "_pos_embed")
    return isinstance(network, _VisionTransformer) and all(
        getattr(kind, name) is getattr(_VisionTransformer, name) for name in same
    )
