from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from privfm.federation import pretraining
from privfm.federation.pretraining import Recipe, cache_folder, public_initialisation
from privfm.models import DEFAULT_BACKBONE, BackboneSpec, build_backbone
from privfm.objectives import MaskedAutoEncoding, get_objective

SPEC = BackboneSpec("test_vit", image_size=16, patch_size=4, depth=1)
OBJECTIVE = MaskedAutoEncoding()
BRIEF = Recipe(images=64, steps=6, batch=8)


def test_training_moves_the_weights_and_lowers_the_loss(tmp_path: Path) -> None:
    fresh = OBJECTIVE.build(build_backbone(SPEC, 0), 0)
    state, provenance = public_initialisation(
        SPEC, OBJECTIVE, seed=0, recipe=Recipe(images=256, steps=80, batch=32), cache=tmp_path
    )
    images = torch.from_numpy(pretraining.procedural_images(64, 16, 1, pretraining.np.random.default_rng(5)))
    views = pretraining.standardise(images)[None]
    losses = []
    for weights in (fresh.state_dict(), state):
        network = OBJECTIVE.build(build_backbone(SPEC, 0), 0)
        network.load_state_dict(weights, strict=True)
        losses.append(OBJECTIVE.unit_losses(network, views, [pretraining.np.random.default_rng(1)]).item())
    assert losses[1] < 0.97 * losses[0]
    assert "nobody's data" in provenance.sentence
    assert provenance.weights in provenance.sentence
    assert "\n" not in provenance.sentence


def test_the_seed_decides_everything_and_the_global_state_nothing(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    first, _ = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path / "a")
    torch.manual_seed(99)
    again, _ = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path / "b")
    other, _ = public_initialisation(SPEC, OBJECTIVE, seed=1, recipe=BRIEF, cache=tmp_path / "c")
    torch.set_rng_state(state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_cached_result_is_the_same_and_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, made = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)
    monkeypatch.setattr(pretraining, "_train", lambda *given: pytest.fail("trained again"))
    again, read = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (made.cached, read.cached) == (False, True)
    assert made.weights == read.weights
    assert read.seconds == made.seconds > 0


def test_whatever_changes_the_result_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = pretraining._key(SPEC, OBJECTIVE, 0, BRIEF)
    others = [
        pretraining._key(replace(SPEC, channels=3), OBJECTIVE, 0, BRIEF),
        pretraining._key(SPEC, MaskedAutoEncoding(mask_ratio=0.5), 0, BRIEF),
        pretraining._key(SPEC, OBJECTIVE, 1, BRIEF),
        pretraining._key(SPEC, OBJECTIVE, 0, replace(BRIEF, steps=7)),
    ]
    monkeypatch.setattr(pretraining, "_source_hash", lambda: "another version")
    others.append(pretraining._key(SPEC, OBJECTIVE, 0, BRIEF))
    assert len({key, *others}) == 6


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_made_again(damage: str, tmp_path: Path) -> None:
    first, _ = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    spoilt = {"truncated": bytes(content[:-100]), "flipped": bytes(content), "empty": b"", "foreign": b"x" * 500}
    file.write_bytes(spoilt[damage])
    again, provenance = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)
    assert not provenance.cached
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)[1].cached


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    state, provenance = public_initialisation(SPEC, OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path / "file" / "cache")
    assert state
    assert not provenance.cached


def test_progress_runs_from_none_to_all(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    public_initialisation(
        SPEC,
        OBJECTIVE,
        seed=0,
        recipe=BRIEF,
        cache=tmp_path,
        progress=lambda name, done, total: heard.append((done, total)),
    )
    assert heard == [(done, 6) for done in range(7)]


def test_the_cache_follows_the_user_s_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "privfm"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "privfm"


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_other_families_can_start_publicly(name: str, tmp_path: Path) -> None:
    state, _ = public_initialisation(BackboneSpec(name), OBJECTIVE, seed=0, recipe=BRIEF, cache=tmp_path)
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("name", ["simmim", "simsiam", "byol", "dino", "simclr"])
def test_other_objectives_can_start_publicly(name: str, tmp_path: Path) -> None:
    state, provenance = public_initialisation(
        BackboneSpec("test_convnext"), get_objective(name), seed=0, recipe=BRIEF, cache=tmp_path
    )
    again, read = public_initialisation(
        BackboneSpec("test_convnext"), get_objective(name), seed=0, recipe=BRIEF, cache=tmp_path
    )
    assert all(bool(value.isfinite().all()) and torch.equal(value, again[key]) for key, value in state.items())
    assert (provenance.cached, read.cached) == (False, True)


def test_a_larger_backbone_takes_fewer_steps_and_images() -> None:
    recipe = Recipe(images=4000, steps=700, operations=1e10, pixels=2**20)
    fitted = {}
    for spec in (SPEC, replace(SPEC, image_size=64)):
        network = OBJECTIVE.build(build_backbone(spec, 0), 0)
        fitted[spec.image_size] = pretraining._fitted(recipe, network, OBJECTIVE, spec)
    assert 20 <= fitted[64].steps < fitted[16].steps <= 700
    assert (fitted[16].images, fitted[64].images) == (4000, 2**20 // 64**2)


def test_the_default_backbone_takes_all_its_steps() -> None:
    network = OBJECTIVE.build(build_backbone(DEFAULT_BACKBONE, 0), 0)
    assert pretraining._fitted(Recipe(), network, OBJECTIVE, DEFAULT_BACKBONE) == Recipe()
