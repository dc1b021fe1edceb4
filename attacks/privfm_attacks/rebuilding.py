"""What is rebuilt of made-up patients, one way after another: with and without noise, of one step, of many, of a sum.

In every way the attacker knows the weights, the objective and the masks, and what images look like on average. What it
rebuilds is held against the patient's image on the patches that the encoder saw, beside the average image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from privfm.dp.coins import Coins, SystemCoins
from privfm.dp.mechanism import StepMechanism
from privfm.federation.planning import update_weight
from privfm.plan import OptimizerPlan, Plan
from privfm_attacks.identification import noisy_step, share_interval
from privfm_attacks.inversion import invert, psnr, solve_patches
from privfm_attacks.target import Gallery, Target, embeddings

__all__ = ["NULLS", "Closed", "Iterated", "Rebuilt", "Way", "mean_release"]

MOST_HOSPITALS, MOST_STEPS = 10, 8
NULLS = 19
"""Sets of patients who are not in a sum, of which none may look more like what was rebuilt: chance 1 in 20."""


@dataclass(frozen=True)
class Rebuilt:
    """A patient's image and what an attack made of it, standardised.

    Args:
        patient: which.
        where: the pixels that were there to be rebuilt.
        average: the image that anybody would guess.
    """

    patient: int
    original: Float[Tensor, "c h w"]
    image: Float[Tensor, "c h w"]
    average: Float[Tensor, "c h w"]
    where: Bool[Tensor, "c h w"]

    @property
    def psnr(self) -> float:
        return psnr(self.image, self.original, self.where)

    @property
    def baseline(self) -> float:
        """The guess's."""
        return psnr(self.average, self.original, self.where)

    def pixels(self) -> tuple[Float[np.ndarray, "c h w"], Float[np.ndarray, "c h w"]]:
        """Return both in [0, 1], from the original's darkest pixel to its brightest; what was hidden is its mean."""
        darkest, brightest = self.original.min(), self.original.max()
        both = (self.original, self.image * self.where)
        first, second = (((one - darkest) / (brightest - darkest).clamp(min=1e-12)).clamp(0, 1) for one in both)
        return first.numpy(), second.numpy()


@dataclass(frozen=True)
class Way:
    """Reconstructions of several patients by one attack.

    Args:
        key, name: for programs, and for people.
        matched: of a sum, in how many trials a member's image fits better than all others'; else None.
    """

    key: str
    name: str
    rebuilt: tuple[Rebuilt, ...]
    matched: int | None = None

    @property
    def median(self) -> float:
        return median(one.psnr for one in self.rebuilt)

    @property
    def best(self) -> float:
        return max(one.psnr for one in self.rebuilt)

    @property
    def baseline(self) -> float:
        return median(one.baseline for one in self.rebuilt)

    def better(self, alpha: float) -> tuple[float, float, float]:
        """Return the share of images rebuilt better than by guessing, and its limits with confidence 1 - alpha."""
        hits = sum(one.psnr > one.baseline for one in self.rebuilt)
        return hits / len(self.rebuilt), *share_interval(hits, len(self.rebuilt), alpha)

    def shown(self) -> tuple[Rebuilt, Rebuilt]:
        """Return the reconstruction in the middle, and the best."""
        ordered = sorted(self.rebuilt, key=lambda one: one.psnr)
        return ordered[len(ordered) // 2], ordered[-1]


class Closed:
    """Attacks through position embeddings.

    Args:
        target: a network that has a closed form.
        gallery: patients at its image size.
    """

    def __init__(self, target: Target, gallery: Gallery) -> None:
        self.target, self.gallery = target, gallery

    def one_image(self, patients: Sequence[int]) -> Way:
        """The gradient of one image: exact up to rounding."""
        return Way("image", "one image, one gradient", tuple(map(self._one_image, patients)))

    def _one_image(self, patient: int) -> Rebuilt:
        frame = self.gallery.frame(patient)
        return self._rebuilt(patient, frame, self.target.gradient(frame, patient), self.target.seen([patient]))

    def many_images(self, patients: Sequence[int]) -> Way:
        """The gradient of all of a patient's images together: more unknowns than equations."""
        count = self.gallery.frames.shape[1]
        return Way("patient", f"a patient's {count} images, one gradient", tuple(map(self._many_images, patients)))

    def _many_images(self, patient: int) -> Rebuilt:
        frames = self.gallery.patient(patient)
        everywhere = torch.ones_like(frames[0], dtype=torch.bool)
        return self._rebuilt(patient, frames, self.target.gradient(frames, patient), everywhere)

    def local_steps(self, patients: Sequence[int], steps: int, optimizer: OptimizerPlan, *, augmented: bool) -> Way:
        """The update of several steps, each with a mask of its own, on one view or on a new one each."""
        steps = min(steps, MOST_STEPS)
        views = "new views" if augmented else "one view"

        def rebuilt(patient: int) -> Rebuilt:
            seen = (
                self.gallery.views(patient, steps) if augmented else self.gallery.frame(patient).repeat(steps, 1, 1, 1)
            )
            keys = [1000 * patient + step for step in range(steps)]
            update = self.target.update([view[None] for view in seen], keys, optimizer)
            return self._rebuilt(patient, seen, update, self.target.seen(keys))

        key = f"{optimizer.name.replace('-', '_')}_{'new_views' if augmented else 'one_view'}"
        return Way(key, f"{steps} steps of {optimizer.name}, {views}", tuple(map(rebuilt, patients)))

    def secure_sum(self, plan: Plan, trials: int) -> Way:
        """The sum over hospitals of one image's gradient each, and what fits it best."""
        weights = [update_weight(plan, hospital) for hospital in plan.hospitals][:MOST_HOSPITALS]
        found = [self._secure_sum(weights, trial) for trial in range(trials)]
        name = f"the sum over {len(weights)} hospitals, one image each"
        return Way("sum", name, tuple(one for one, _ in found), sum(matched for _, matched in found))

    def _secure_sum(self, weights: Sequence[float], trial: int) -> tuple[Rebuilt, bool]:
        order = np.random.default_rng(trial).permutation(len(self.gallery)).tolist()
        members, others = order[: len(weights)], order[len(weights) :]
        keys = [1000 * trial + place for place in range(len(weights))]
        parts = [
            weight * self.target.gradient(self.gallery.frame(member), key)
            for weight, member, key in zip(weights, members, keys, strict=True)
        ]
        image = self._solved(torch.stack(parts).sum(dim=0), self.target.seen(keys))
        masks = [self.target.seen([key]) for key in keys]
        null = [self._best(image, others[start::NULLS][: len(masks)], masks).psnr for start in range(NULLS)]
        best = self._best(image, members, masks)
        return best, best.psnr > max(null)

    def _best(self, image: Tensor, patients: Sequence[int], masks: Sequence[Tensor]) -> Rebuilt:
        """The patient whose image is most like the one that was rebuilt."""
        each = [
            Rebuilt(patient, self.gallery.frame(patient)[0], image, self.gallery.average, mask)
            for patient, mask in zip(patients, masks, strict=False)
        ]
        return max(each, key=lambda one: one.psnr)

    def noised(
        self, mechanism: StepMechanism, patients: Sequence[int], steps: int, coins: Coins | None = None
    ) -> tuple[Way, Bool[np.ndarray, " patients"]]:
        """The mean of all the steps that the mechanism releases of one image; and who is the most like it of all.

        The gradient is as long as the clip norm allows, the mask is one and the same in every step and for everybody.
        """
        found = [self._noised(mechanism, patient, steps, coins or SystemCoins()) for patient in patients]
        seen = self.target.seen([0])
        known = torch.stack([self.gallery.frame(patient)[0] for patient in range(len(self.gallery))])
        likeness = _cosines(torch.stack([one.image for one in found]), known, self.gallery.average, seen)
        right = likeness.argmax(dim=1).numpy() == np.asarray(patients)
        return Way("noised", "one image, all steps, the plan's noise", tuple(found)), right

    def _noised(self, mechanism: StepMechanism, patient: int, steps: int, coins: Coins) -> Rebuilt:
        frame = self.gallery.frame(patient)
        gradient = self.target.gradient(frame, 0)
        gradient *= mechanism.clip_norm / gradient.norm()
        positions, weights = embeddings(self.target, gradient)
        attacked = torch.cat([positions.flatten(), weights.flatten()])  # noise is drawn for each number alone
        mean = mean_release(mechanism, attacked, steps, coins, patient)
        parts = mean[: positions.numel()].reshape(positions.shape), mean[positions.numel() :].reshape(weights.shape)
        return self._made(patient, frame, self._image(*parts, self.target.seen([0])), self.target.seen([0]))

    def _rebuilt(self, patient: int, views: Tensor, vector: Tensor, seen: Tensor) -> Rebuilt:
        return self._made(patient, views, self._solved(vector, seen), seen)

    def _made(self, patient: int, views: Tensor, image: Tensor, seen: Tensor) -> Rebuilt:
        each = [Rebuilt(patient, view, image, self.gallery.average, seen) for view in views]
        return max(each, key=lambda one: one.psnr)

    def _solved(self, vector: Tensor, seen: Tensor) -> Float[Tensor, "c h w"]:
        return self._image(*embeddings(self.target, vector), seen)

    def _image(self, positions: Tensor, weights: Tensor, seen: Tensor) -> Float[Tensor, "c h w"]:
        """The image on the patches seen, the average on others; there positions do not move but by noise."""
        patches, kept = self.target.patches(self.gallery.average), self.target.patches(seen.float()).any(dim=1)
        noise = 0.0 if bool(kept.all()) else float(positions[~kept].square().mean().sqrt())
        patches[kept] = solve_patches(positions[kept], weights, patches[kept], noise)
        return self.target.image(patches)


class Iterated:
    """Gradient inversion.

    Args:
        target: a small network.
        gallery: patients at its image size.
        iterations: for each image.
    """

    def __init__(self, target: Target, gallery: Gallery, iterations: int) -> None:
        self.target, self.gallery, self.iterations = target, gallery, iterations

    def plain(self, patients: Sequence[int]) -> Way:
        """From the gradient of one image."""
        return Way("inversion", "gradient inversion, one image", self._all(patients, lambda patient, exact: exact))

    def noised(self, mechanism: StepMechanism, patients: Sequence[int], steps: int, coins: Coins | None = None) -> Way:
        """From the mean of all the steps that the mechanism releases of one image, as long as the clip norm allows."""

        def seen_of(patient: int, exact: Tensor) -> Tensor:
            longest = exact * (mechanism.clip_norm / exact.norm())
            return mean_release(mechanism, longest, steps, coins or SystemCoins(), patient)

        return Way("inversion_noised", "gradient inversion, the plan's noise", self._all(patients, seen_of))

    def _all(self, patients: Sequence[int], seen_of: Callable[[int, Tensor], Tensor]) -> tuple[Rebuilt, ...]:
        return tuple(self._one(patient, seen_of) for patient in patients)

    def _one(self, patient: int, seen_of: Callable[[int, Tensor], Tensor]) -> Rebuilt:
        frame, average = self.gallery.frame(patient), self.gallery.average
        found = invert(
            lambda guess: self.target.gradient(guess, patient, differentiable=True),
            seen_of(patient, self.target.gradient(frame, patient)),
            average[None],
            iterations=self.iterations,
        )
        return Rebuilt(patient, frame[0], found[0], average, self.target.seen([patient]))


def mean_release(
    mechanism: StepMechanism, gradient: Float[Tensor, " numbers"], steps: int, coins: Coins, label: int
) -> Float[Tensor, " numbers"]:
    """Return the mean of what the mechanism releases of one patient, whose gradient stays the same."""
    fixed = replace(mechanism, adaptive=None, noise_multiplier=mechanism.gradient_noise_multiplier)
    total = torch.zeros_like(gradient)
    for step in range(steps):
        total += noisy_step(fixed, gradient, coins, (label, step))[0]
    return total / steps


def _cosines(
    found: Float[Tensor, "m c h w"], known: Float[Tensor, "n c h w"], average: Tensor, where: Tensor
) -> Float[Tensor, "m n"]:
    """How alike images are in what they have beyond the average."""
    first, second = ((images - average)[:, where] for images in (found, known))
    return torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T
