from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from privfm.data import ArrayPixels, ImageSet
from privfm.errors import DataError
from privfm.evaluation import linear_probe, nearest_neighbours, pooled_features
from privfm.evaluation.probe import _folds
from privfm.ids import PatientId
from privfm.models import BackboneSpec, build_backbone

BACKBONE = build_backbone(BackboneSpec("test_vit", image_size=16, patch_size=4, depth=1), seed=0)


def gratings(name: str, patients: int, seed: int, classes: int = 3, told: bool = True) -> ImageSet:
    """Stripes of a frequency per class, four images of each patient; labels say nothing when not told."""
    rng = np.random.default_rng(seed)
    label_of = np.arange(patients) % classes
    patient_of = np.repeat(np.arange(patients), 4)
    labels = label_of[patient_of]
    phase = rng.uniform(0, 6, size=(len(labels), 1, 1, 1))
    wave = np.sin(2.0 ** labels[:, None, None, None] * np.linspace(0, 6, 16) + phase)
    pixels = np.clip(0.5 + 0.3 * wave + 0.05 * rng.standard_normal((len(labels), 1, 16, 16)), 0, 1).astype(np.float32)
    return ImageSet(
        name=name,
        pixels=ArrayPixels(pixels),
        patients=tuple(PatientId(f"{name}{patient}") for patient in range(patients)),
        patient_of=patient_of,
        class_names=tuple("abc"[:classes]),
        labels=labels if told else rng.permutation(labels),
    )


FIT, TEST = gratings("fit", 30, seed=0), gratings("test", 18, seed=1)


def test_a_probe_finds_what_is_there() -> None:
    result = linear_probe(BACKBONE, FIT, TEST)
    assert result.balanced_accuracy > 0.8
    assert result.low <= result.balanced_accuracy <= result.high
    assert (result.classes, result.fit_images, result.test_images) == (3, 120, 72)


def test_a_probe_finds_nothing_where_labels_say_nothing() -> None:
    result = linear_probe(BACKBONE, gratings("fit", 30, seed=0, told=False), gratings("test", 18, seed=1, told=False))
    assert result.low < 1 / 3 + 0.05
    assert result.balanced_accuracy < 0.5


def test_nearest_neighbours_agree() -> None:
    assert nearest_neighbours(BACKBONE, FIT, TEST).value > 0.7
    assert nearest_neighbours(BACKBONE, gratings("fit", 30, seed=0, told=False), TEST).value < 0.6


def test_it_is_deterministic_quiet_and_leaves_everything_as_it_was() -> None:
    state = torch.get_rng_state()
    BACKBONE.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again = linear_probe(BACKBONE, FIT, TEST), linear_probe(BACKBONE, FIT, TEST)
    assert first == again
    assert BACKBONE.training
    assert torch.equal(torch.get_rng_state(), state)


def test_images_without_a_label_do_not_count() -> None:
    labels = FIT.labels.copy()
    labels[:8] = -1
    result = linear_probe(BACKBONE, replace(FIT, labels=labels), TEST)
    assert result.fit_images == 112


def test_a_constant_or_repeated_feature_does_no_harm() -> None:
    backbone = build_backbone(BackboneSpec("test_vit", image_size=16, patch_size=4, depth=1), seed=0)
    with torch.no_grad():
        backbone.timm.norm.weight[:8] = 0.0
        backbone.timm.norm.bias[:8] = 3.0
    assert linear_probe(backbone, FIT, TEST).balanced_accuracy > 0.8


def test_a_class_that_was_not_fitted_counts_as_missed() -> None:
    fit = FIT.select(np.flatnonzero(FIT.labels != 2))
    result = linear_probe(BACKBONE, fit, TEST)
    assert result.classes == 3
    assert result.balanced_accuracy <= 2 / 3


def test_folds_hold_whole_patients_of_every_class() -> None:
    folds = _folds(FIT.labels, FIT.patient_of)
    for patient in range(len(FIT.patients)):
        assert len(set(folds[FIT.patient_of == patient])) == 1
    for fold in range(3):
        assert set(FIT.labels[folds == fold]) == {0, 1, 2}


def test_features_are_those_of_standardised_images() -> None:
    brighter = replace(FIT, pixels=ArrayPixels((0.5 * FIT.load(np.arange(len(FIT))) + 0.2).astype(np.float32)))
    np.testing.assert_allclose(pooled_features(BACKBONE, brighter), pooled_features(BACKBONE, FIT), atol=1e-3)


def test_sets_that_cannot_be_probed_are_refused() -> None:
    unlabelled = replace(FIT, labels=None, class_names=())
    one_class = FIT.select(np.flatnonzero(FIT.labels == 0))
    for fit, test, reason in [
        (unlabelled, TEST, "no image has a label"),
        (FIT, replace(TEST, labels=np.full(72, -1)), "no image has a label"),
        (one_class, TEST, "all images have one label"),
        (FIT, FIT, "30 patients are both fitted and tested"),
    ]:
        with pytest.raises(DataError, match=reason):
            linear_probe(BACKBONE, fit, test)


def test_few_patients_are_enough() -> None:
    tiny = gratings("tiny", 2, seed=3, classes=2)
    assert linear_probe(BACKBONE, tiny, TEST.select(np.flatnonzero(TEST.labels < 2))).fit_images == 8
