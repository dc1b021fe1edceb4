"""Which images each hospital of a run has, and which are held out."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import numpy as np

from privfm.data import (
    ImageSet,
    hold_out,
    hold_out_by_name,
    load_images,
    shared_patients,
    split_by_hospital,
    split_by_name,
)
from privfm.errors import DataError, PlanError
from privfm.federation.forgotten import NOBODY, Forgotten
from privfm.ids import HospitalId, PatientId
from privfm.plan import Plan

__all__ = ["DEFAULT_NOMINAL_UNITS", "Cohort", "gather_cohort"]

DEFAULT_NOMINAL_UNITS = 50
"""Declared for every hospital when nobody declares anything: a constant, so that it says nothing about anyone."""


@dataclass(frozen=True)
class Cohort:
    """The images of a run.

    Args:
        images: each hospital's images to train on.
        nominal_units: each hospital's declared number of units.
        probe_fit: labelled images that the linear probe is fitted on; None when the probe is off.
        probe_test: labelled images of held-out patients that it is scored on; None when the probe is off.
        assumed: whether `nominal_units` is the default constant.
    """

    images: Mapping[HospitalId, ImageSet]
    nominal_units: Mapping[HospitalId, int]
    probe_fit: ImageSet | None
    probe_test: ImageSet | None
    assumed: bool


def gather_cohort(plan: Plan, forgotten: Forgotten = NOBODY) -> Cohort:
    """Return the plan's images, spread over hospitals, without those who asked out.

    Files of a folder are listed for that, and those of patients who asked out are not decoded. Of one's own images
    nobody's place depends on who else there is, so that all is as if they had never been there; of built-in images,
    which are nobody's, the others keep their places.

    Built-in images are nobody's, so their split is public, sets the declared numbers, and the probe is fitted on the
    training patients. Of one's own images the declared numbers are constants, and the probe, when it is asked for,
    sees held-out patients only.

    Raises:
        DataError: images cannot be read, or do not suffice.
        PlanError: the plan names other hospitals than the images have.
    """
    data = plan.data
    whole = load_images(
        data.source,
        image_size=data.image_size,
        channels=data.channels,
        unit=plan.privacy.unit,
        seed=plan.seed,
        patients=data.patients,
        leaves_out=forgotten.leaves_out,
    )
    _check_shared(plan, whole)
    train, fit, test = _hold_out(plan, whole)
    _check_enough(plan, whole, train)
    everybody = _split(plan, train)
    split = {
        name: _without(images, _asked_out(plan, name, images, forgotten))
        for name, images in everybody.items()
        if name not in forgotten.hospitals
    }
    gone = {patient for name in forgotten.hospitals & everybody.keys() for patient in everybody[name].patients}
    fit, test = (
        None if probed is None else _without(probed, gone | _asked_out(plan, None, probed, forgotten))
        for probed in (fit, test)
    )
    _check_names(plan, split, forgotten)
    builtin = _builtin(whole)
    assumed = data.nominal_units is None and not plan.hospitals and not builtin
    return Cohort(split, _nominal_units(plan, split, builtin), fit, test, assumed)


def _asked_out(plan: Plan, hospital: HospitalId | None, images: ImageSet, forgotten: Forgotten) -> frozenset[PatientId]:
    """Return who of a set asked out at a hospital, or at any; of a folder none is in it any more."""

    def names_of(patient: PatientId) -> set[str]:
        return {patient, patient.rpartition("#")[0]} if plan.privacy.unit == "image" else {patient}

    return frozenset(
        patient
        for patient in images.patients
        if any(forgotten.leaves_out(hospital, name) for name in names_of(patient))
    )


def _without(images: ImageSet, gone: Set[PatientId]) -> ImageSet:
    if gone.isdisjoint(images.patients):
        return images
    kept = [place for place, patient in enumerate(images.patients) if patient not in gone]
    return images.select_patients(np.array(kept, dtype=np.int64))


def _builtin(images: ImageSet) -> bool:
    return images.public or images.synthetic


def _split(plan: Plan, train: ImageSet) -> dict[HospitalId, ImageSet]:
    """Spread built-in images unevenly; of people, no patient's place depends on who else there is."""
    data = plan.data
    shared = data.max_hospitals_per_patient > 1
    if not _builtin(train):
        return split_by_name(train, data.hospitals, seed=plan.seed, allow_shared=shared)
    return split_by_hospital(
        train,
        data.hospitals,
        alpha=data.dirichlet_alpha,
        min_patients=data.min_patients,
        seed=plan.seed,
        allow_shared=shared,
    )


def _check_enough(plan: Plan, whole: ImageSet, train: ImageSet) -> None:
    """Refuse built-in images of too few patients, with what became of the others."""
    data, patients, left = plan.data, len(whole.patients), len(train.patients)
    if not _builtin(whole) or left >= data.hospitals * data.min_patients:
        return
    held = f", {patients - left} of them held out for the probe (--no-probe keeps them)," if left < patients else ""
    more = "ask for more --patients, " if data.source == "phantom" else "ask for "
    raise DataError(
        f"{data.source}: {patients} patients{held} do not give {data.hospitals} hospitals {data.min_patients} each "
        f"(data.min_patients); {more}fewer --hospitals, or a smaller data.min_patients"
    )


def _hold_out(plan: Plan, whole: ImageSet) -> tuple[ImageSet, ImageSet | None, ImageSet | None]:
    """Return images to train on, to fit the probe on, and to score it on."""
    builtin, wanted = _builtin(whole), plan.evaluation.probe
    if wanted is None:
        wanted = builtin and whole.labels is not None
    if not wanted or plan.data.held_out == 0:
        return whole, None, None
    if whole.labels is None:
        raise DataError(f"{plan.data.source}: has no labels to probe with; leave out --probe or add a label column")
    if builtin:
        train, held_out = hold_out(whole, plan.data.held_out, plan.seed)
        return train, train, held_out
    train, held_out = hold_out_by_name(whole, plan.data.held_out, plan.seed)
    fit, test = hold_out_by_name(held_out, 0.5, plan.seed + 1)
    return train, fit, test


def _check_shared(plan: Plan, whole: ImageSet) -> None:
    """Refuse patients at more hospitals than the statement would compose for."""
    declared = plan.data.max_hospitals_per_patient
    most = max((len(places) for places in shared_patients(whole).values()), default=1)
    if most > declared > 1:
        raise DataError(
            f"{plan.data.source}: a patient is at {most} hospitals; set data.max_hospitals_per_patient to {most} "
            "(their spending is composed) or rename the folders if these are different people"
        )


def _check_names(plan: Plan, split: Mapping[HospitalId, ImageSet], forgotten: Forgotten) -> None:
    named = {hospital.id for hospital in plan.hospitals} - forgotten.hospitals
    found = {str(name) for name, images in split.items() if images.patients}
    for name in sorted(named & set(forgotten.patients) - found):
        raise DataError(
            f"{name}: nobody is left to train on; let it leave as a whole: privfm forget RUN --hospital {name}"
        )
    if plan.hospitals and named != found:
        odd = ", ".join(sorted(named ^ found))
        raise PlanError(f"hospitals: the plan and {plan.data.source} do not name the same ones; see {odd}")


def _nominal_units(plan: Plan, split: Mapping[HospitalId, ImageSet], builtin: bool) -> dict[HospitalId, int]:
    declared = plan.data.nominal_units
    if declared is None and builtin:
        return {name: len(images.patients) for name, images in split.items()}
    return dict.fromkeys(split, declared or DEFAULT_NOMINAL_UNITS)
