"""The membership audit of a model of which there is no run: the encoder, whom it is said to have seen, and whom not.

A model's file holds the encoder alone. So the attack goes without the objective's loss, and what an encoder is compared
with is one of the same shape fitted to procedural images. The control is overfitted for longer, since an
encoder gives less away than all of its network.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from privfm.data import ImageSet, load_images
from privfm.errors import InputError
from privfm.federation.initialisation import initialise
from privfm.federation.network import Learner
from privfm.federation.observer import Observer
from privfm.models import Backbone, load_backbone
from privfm.plan import Plan, parse_plan
from privfm_attacks.claims import Claim
from privfm_attacks.membership import MembershipEffort, tell_members
from privfm_attacks.signals import OF_ENCODERS
from privfm_attacks.verdicts import AuditResult, Finding

__all__ = ["ModelFile", "audit_model"]


@dataclass(frozen=True)
class ModelFile:
    """A model, and what is said of it.

    Args:
        path: the folder with model.safetensors and config.json, or a file of weights with config.json beside it.
        members: a folder of images of patients whom it was trained on, as for `privfm train --data`.
        others: one of patients of the same kind whom it was not trained on.
        claim: the guarantee that it is said to have.
    """

    path: Path
    members: Path
    others: Path
    claim: Claim

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def weights(self) -> Path:
        """The file that is read."""
        return self.path if self.path.suffix == ".safetensors" else self.folder / "model.safetensors"


def audit_model(model: ModelFile, effort: MembershipEffort, observer: Observer) -> AuditResult:
    """Return the membership audit of a model's encoder.

    Raises:
        ModelError: the model cannot be read.
        DataError: images cannot be read.
        InputError: somebody is on both sides.
    """
    backbone = load_backbone(model.path)
    members, others = (_images(folder, backbone) for folder in (model.members, model.others))
    both = sorted(set(members.patients) & set(others.patients))
    if both:
        raise InputError(
            f"{both[0]} is both in {model.members} and in {model.others}: nobody can be trained on and held out; name "
            "patients apart"
        )
    start = initialise(_plan(model.members, backbone), observer).learner
    effort = replace(effort, control_steps=3 * effort.control_steps, control_seconds=2 * effort.control_seconds)
    learner = _with(start, backbone)
    result = tell_members(
        learner, start, [members], [others], model.claim, OF_ENCODERS, effort, observer.progress, local=True
    )
    told = f"{model.weights}, SHA-256 {hashlib.sha256(model.weights.read_bytes()).hexdigest()[:16]}..."
    read = f"{len(members.patients)} patients in {model.members}, {len(others.patients)} others in {model.others}"
    return replace(result, findings=(*result.findings, Finding("model", True, told), Finding("images", True, read)))


def _images(folder: Path, backbone: Backbone) -> ImageSet:
    spec = backbone.spec
    return load_images(str(folder), image_size=spec.image_size, channels=spec.channels)


def _plan(folder: Path, backbone: Backbone) -> Plan:
    """What the control is trained by: the default objective, all of the network."""
    spec = asdict(backbone.spec)
    data = {"source": str(folder), **{key: spec.pop(key) for key in ("image_size", "channels")}}
    model = {"backbone": spec.pop("name"), "trainable": "all", **{key: spec[key] for key in spec if spec[key]}}
    return parse_plan({"data": data, "model": model})


def _with(start: Learner, backbone: Backbone) -> Learner:
    """The start's network around another backbone."""
    network = copy.deepcopy(start.network)
    network.backbone.load_state_dict(backbone.state_dict())
    return start._replace(network=network)
