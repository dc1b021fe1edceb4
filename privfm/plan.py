"""The federation plan: what will be trained, on what, under which guarantee. Validated once, hashed, written as TOML.

A plan has two halves. Everything in `Plan` except `performance` changes what is learnt or released: its hash goes into
every ledger and every protocol context. `performance` only changes speed and memory, and is left out of the hash.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from privfm.coupling import COUPLING_OPTIONS
from privfm.errors import PlanError, RunError
from privfm.ids import HospitalId

__all__ = [
    "DataPlan",
    "EvaluationPlan",
    "FederationPlan",
    "HospitalPlan",
    "ModelPlan",
    "ObjectivePlan",
    "OptimizerPlan",
    "PerformancePlan",
    "Plan",
    "PrivacyPlan",
    "SecAggPlan",
    "parse_plan",
    "read_plan",
    "stored_plan",
]

MAX_PLAN_BYTES = 1 << 20

Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Epsilon = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Delta = Annotated[float, Field(gt=0, lt=0.1, allow_inf_nan=False)]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
TRAINABLE = r"^(all|norm-bias|lora|last-[1-9][0-9]?)$"
DEVICE = r"^(auto|cpu|cuda(:[0-9]+)?)$"
PATTERNS = {
    NAME: "must be up to 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
    TRAINABLE: "must be all, norm-bias, lora, or last-K with K from 1 to 99",
    DEVICE: "must be auto, cpu, cuda, or cuda:N",
}
"""What a text must look like, in words."""

Name = Annotated[str, Field(pattern=NAME)]


class Section(BaseModel):
    """A table of the plan: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataPlan(Section):
    """Where images come from, and how they are spread over hospitals."""

    source: str = Field(default="tiles", min_length=1, description="tiles, phantom, a folder, or a MedMNIST .npz file")
    image_size: int = Field(default=32, ge=8, le=1024, description="pixels a side that the backbone sees")
    channels: Literal[1, 3] = Field(default=1, description="1 grey, 3 colour")
    patients: int | None = Field(default=None, ge=2, le=10_000_000, description="how many patients phantom draws")
    hospitals: int = Field(default=5, ge=3, le=1000, description="hospitals that a built-in set is spread over")
    dirichlet_alpha: Positive = Field(
        default=1.0, description="spread of classes over hospitals; smaller is more uneven"
    )
    min_patients: int = Field(default=20, ge=1, description="patients that every hospital has at least (built-in sets)")
    held_out: float = Field(
        default=0.25, ge=0, lt=1, description="share of patients kept out of training for the probe"
    )
    nominal_units: int | None = Field(
        default=None, ge=1, le=100_000_000, description="declared units of every hospital, unless it has its own"
    )
    max_hospitals_per_patient: int = Field(default=1, ge=1, le=100, description="above 1: their spending is composed")


class ModelPlan(Section):
    """The backbone and where training starts."""

    backbone: str | None = Field(
        default=None, min_length=1, max_length=200, description="a timm model's name; default a ViT that suits a CPU"
    )
    patch_size: int | None = Field(
        default=None, ge=1, le=64, description="pixels a side of a patch, for models that take it"
    )
    width: int | None = Field(default=None, ge=8, le=4096, description="features of a token, for ViTs")
    depth: int | None = Field(default=None, ge=1, le=64, description="blocks, for ViTs")
    heads: int | None = Field(default=None, ge=1, le=64, description="attention heads, for ViTs")
    init: str = Field(default="public", min_length=1, description="public, scratch, or a .safetensors file")
    trainable: str = Field(
        default="norm-bias",
        pattern=TRAINABLE,
        description="all, last-K, norm-bias or lora",
    )
    lora_rank: int = Field(default=4, ge=1, le=256, description="lora: width of the adapters")


class ObjectivePlan(Section):
    """The self-supervised loss."""

    name: str = Field(
        default="mae", min_length=1, max_length=64, description="mae, simmim, simsiam, byol, dino or simclr"
    )
    mask_ratio: float | None = Field(
        default=None, gt=0, lt=1, description="mae, simmim: share of patches that are hidden"
    )
    min_area: float | None = Field(default=None, gt=0, le=1, description="others: smallest part of a view to glance at")
    tone: float | None = Field(default=None, ge=0, le=1, description="others: how tones differ between glances")
    width: int | None = Field(default=None, ge=2, le=4096, description="others: numbers in an embedding")
    hidden: int | None = Field(default=None, ge=2, le=8192, description="others: width of the heads' middle layers")
    temperature: Positive | None = Field(default=None, description="dino, simclr: what likenesses are divided by")
    teacher_temperature: Positive | None = Field(default=None, description="dino: the teacher's")
    prototypes: int | None = Field(default=None, ge=2, le=65536, description="dino: directions to be like")
    centre: str | None = Field(default=None, max_length=16, description="dino: public, or none")
    public: int | None = Field(
        default=None, ge=2, le=16384, description="simsiam, byol, dino: public images to standardise or centre by"
    )
    negatives: int | None = Field(default=None, ge=2, le=16384, description="simclr: public images to be unlike")

    @property
    def options(self) -> dict[str, object]:
        """What is set beside the name, for the objective to take or refuse."""
        return self.model_dump(exclude={"name"}, exclude_none=True)


class PrivacyPlan(Section):
    """The guarantee, and the public constants of the mechanism."""

    dp: bool = Field(default=True, description="false: no noise and no guarantee, for research on nobody's images")
    unit: Literal["patient", "image"] = Field(default="patient", description="whose presence is hidden")
    epsilon: Epsilon = Field(default=8.0, description="what each hospital spends at most, retries included")
    delta: Delta = Field(default=1e-5, description="should be well under 1 / patients")
    sample_rate: Probability = Field(default=0.5, description="chance of a unit to be drawn in a step")
    clip_norm: Annotated[float, Field(ge=1e-5, le=1e6)] | None = Field(
        default=None, description="L2 bound on a unit's gradient; default from procedural images"
    )
    clip_quantile: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="adapt the clip norm so that this share of gradients is within; counted privately"
    )
    noise_terms: Literal[1, 4] = Field(
        default=1, description="draws behind a noise value; 4 hide floating-point grids, at four times the price"
    )
    images_per_unit: int = Field(default=8, ge=1, le=1024, description="images drawn of a sampled unit")
    views: int = Field(default=1, ge=1, le=64, description="augmented views of a drawn image; they cost no privacy")


class HospitalPlan(Section):
    """One hospital's public numbers. None of them is computed from its true count of patients."""

    id: Name = Field(description="name, also of its files")
    nominal_units: int = Field(ge=1, le=100_000_000, description="declared units; sets the divisor, not epsilon")
    sample_rate: Probability | None = Field(default=None, description="its own sampling rate")
    epsilon: Epsilon | None = Field(default=None, description="its own limit, when smaller than the plan's")
    noise_multiplier: Positive | None = Field(default=None, description="noise standard deviation over clip norm")


class FederationPlan(Section):
    """Rounds and how updates become the next model."""

    rounds: int = Field(default=10, ge=1, le=100_000, description="rounds of the federation")
    local_steps: int = Field(default=2, ge=1, le=10_000, description="noisy steps of a hospital in a round")
    retry_rounds: int = Field(default=2, ge=0, le=10_000, description="rounds a crash may cost; accounted ahead")
    strategy: Literal["fedavg", "fedavgm", "fedadam"] = Field(
        default="fedavg", description="fedavg, fedavgm or fedadam"
    )
    server_learning_rate: Positive = Field(default=1.0, description="step of the server along the averaged update")
    server_momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of fedavgm; first moment of fedadam")


class OptimizerPlan(Section):
    """The hospital's local optimiser; it sees noised gradients only."""

    name: Literal["sgd", "adam", "adam-bc"] = Field(
        default="adam", description="sgd, adam, or adam-bc: second moments without the noise's part"
    )
    learning_rate: Positive = Field(default=0.01, description="local step")
    weight_decay: NonNegative = Field(default=0.0, description="decoupled weight decay")


class SecAggPlan(Section):
    """Masking of updates."""

    modulus_bits: Literal[16, 24, 32] = Field(default=24, description="bits of a masked value on the wire")
    clamp: Positive | None = Field(
        default=None, description="range of one value of an update; computed from public numbers"
    )
    threshold: int | None = Field(
        default=None, ge=2, description="hospitals that must finish; default the least that is safe"
    )
    max_corrupt: int = Field(default=0, ge=0, description="hospitals that may collude with the coordinator")


class EvaluationPlan(Section):
    """What is measured on images: by probes outside the guarantee, by hospitals within it."""

    probe: bool | None = Field(default=None, description="probe held-out patients; default only if built-in")
    local_loss: bool = Field(
        default=False, description="show the hospitals' own mean loss each round: noised, masked, charged as one step"
    )
    loss_bound: Positive | None = Field(
        default=None, description="a unit's loss counts as this at most; default from procedural images"
    )


class PerformancePlan(Section):
    """Speed and memory only; not part of the plan's hash."""

    device: str = Field(default="auto", pattern=DEVICE, description="auto, cpu or cuda")
    threads: int | None = Field(default=None, ge=1, le=1024, description="threads of torch; default all cores")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of layers; norms, sums and noise stay float32 or better"
    )
    micro_batch: int | None = Field(default=None, ge=1, description="units at a time; default what memory allows")


class Plan(Section):
    """A whole federation.

    Example:
        >>> plan = parse_plan({"privacy": {"epsilon": 4}})
        >>> plan.privacy.epsilon, plan.data.source
        (4.0, 'tiles')
        >>> parse_plan({"privacy": {"epsilom": 4}})
        Traceback (most recent call last):
        ...
        privfm.errors.PlanError: plan: privacy.epsilom: unknown key; did you mean epsilon?
    """

    version: Literal[1] = Field(default=1, description="of this format")
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="public randomness only: partition, initialisation, control"
    )
    data: DataPlan = DataPlan()
    model: ModelPlan = ModelPlan()
    objective: ObjectivePlan = ObjectivePlan()
    privacy: PrivacyPlan = PrivacyPlan()
    federation: FederationPlan = FederationPlan()
    optimizer: OptimizerPlan = OptimizerPlan()
    secagg: SecAggPlan = SecAggPlan()
    evaluation: EvaluationPlan = EvaluationPlan()
    performance: PerformancePlan = PerformancePlan()
    hospitals: Annotated[tuple[HospitalPlan, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _hospitals_are_a_cohort(self) -> Plan:
        names = [hospital.id for hospital in self.hospitals]
        if len({name.casefold() for name in names}) != len(names):
            raise ValueError("hospitals: two have the same id")
        if 0 < len(names) < 3:
            raise ValueError("hospitals: at least 3 are needed, or a sum would show one to another")
        return self

    def hash(self) -> bytes:
        """Return the 32-byte SHA-256 of everything but `performance`, as canonical JSON."""
        content = self.model_dump(mode="json", exclude={"performance"})
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).digest()

    def hospital(self, name: HospitalId) -> HospitalPlan:
        """Return the hospital called `name`; ValueError when there is none."""
        for hospital in self.hospitals:
            if hospital.id == name:
                return hospital
        raise ValueError(f"no hospital {name!r} in the plan")

    def sample_rate(self, hospital: HospitalPlan) -> float:
        return hospital.sample_rate if hospital.sample_rate is not None else self.privacy.sample_rate

    def epsilon(self, hospital: HospitalPlan) -> float:
        """Return what `hospital` may spend: its own limit or the plan's, whichever is smaller."""
        return min(hospital.epsilon or self.privacy.epsilon, self.privacy.epsilon)

    @property
    def shown_loss_bound(self) -> float | None:
        """What a unit's loss counts as at most where hospitals' losses are shown; None where they are not."""
        return self.evaluation.loss_bound if self.evaluation.local_loss else None

    @property
    def steps_per_round(self) -> int:
        """Noisy steps of a hospital in a round: those that train, and one for the loss where it is shown."""
        return self.federation.local_steps + self.evaluation.local_loss

    @property
    def planned_steps(self) -> int:
        """Noisy steps of a hospital when nothing crashes."""
        return self.federation.rounds * self.steps_per_round

    @property
    def reserved_steps(self) -> int:
        """Noisy steps that the noise is calibrated for: the planned ones and the retry reserve."""
        return (self.federation.rounds + self.federation.retry_rounds) * self.steps_per_round

    def to_toml(self) -> str:
        """Return the plan as TOML with a comment a key; `parse_plan(tomllib.loads(...))` gives it back."""
        lines = [*_keys(self, skip_sections=True)]
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, Section):
                lines += ["", f"# {_first_line(section)}", f"[{name}]", *_keys(section)]
        for hospital in self.hospitals:
            lines += ["", "[[hospitals]]", *_keys(hospital)]
        if not self.hospitals:
            lines += ["", "# Hospitals are read off the images, or named here, one table each.", *_unnamed_hospital()]
        return "\n".join(lines) + "\n"


def _unnamed_hospital() -> list[str]:
    """Return what a hospital's table looks like, as comments."""
    fields = HospitalPlan.model_fields.items()
    return ["# [[hospitals]]", *(f"{f'# {name} =':<44}  # {field.description}" for name, field in fields)]


def _first_line(section: Section) -> str:
    return (type(section).__doc__ or "").strip().splitlines()[0]


def _keys(section: Section, *, skip_sections: bool = False) -> list[str]:
    lines = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if skip_sections and isinstance(value, Section | tuple):
            continue
        line = f"# {name} =" if value is None else tomli_w.dumps({name: value}).strip()
        lines.append(f"{line:<44}  # {field.description}")
    return lines


def parse_plan(content: dict[str, Any], origin: str = "plan") -> Plan:
    """Return the validated plan; PlanError names `origin` and the first wrong key."""
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise PlanError(f"{origin}: {_explain(error)}") from None


def read_plan(path: Path) -> dict[str, Any]:
    """Return the TOML file's content, unvalidated; PlanError when it cannot be read."""
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise PlanError(f"{path}: larger than {MAX_PLAN_BYTES} bytes; a plan is a short TOML file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror}); give the path of a plan") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: not valid TOML: {error}") from None


def stored_plan(path: Path) -> Plan:
    """Return the plan that a run keeps; RunError when it is not one, since nobody typed it."""
    try:
        return parse_plan(read_plan(path), str(path))
    except PlanError as error:
        raise RunError(f"{error}; the run's folder is damaged, restore the file") from None


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["loc"][:1] == ("objective",) and first["loc"][-1] in COUPLING_OPTIONS:
        return f"{key}: {COUPLING_OPTIONS[str(first['loc'][-1])]}; leave it out"
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggestion(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_pattern_mismatch":
        message = PATTERNS[first["ctx"]["pattern"]]
    if not key:
        return message
    given = "" if first["type"] == "missing" else f" (got {first['input']!r})"
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def _suggestion(location: tuple[int | str, ...]) -> str:
    import difflib

    section: Any = Plan
    for part in location[:-1]:
        if part == "hospitals":
            section = HospitalPlan
        elif isinstance(part, str):
            section = section.model_fields[part].annotation
    close = difflib.get_close_matches(str(location[-1]), section.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(section.model_fields)}"
