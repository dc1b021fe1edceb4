"""The sentence below a probe never claims more than its intervals show."""

from __future__ import annotations

import pytest

from privfm.federation.records import Interval, ProbeComparison, PublicLoss
from privfm.plan import Plan, parse_plan
from privfm.report.verdict import probe_verdict, public_loss_verdict


def _probe(trained: tuple[float, float, float], noise_only: tuple[float, float, float]) -> ProbeComparison:
    weak = Interval(0.1, 0.05, 0.15)
    return ProbeComparison(
        trained=Interval(*trained), untrained=weak, noise_only=Interval(*noise_only), initial=Interval(*noise_only)
    )


@pytest.mark.parametrize(
    ("trained", "noise_only", "claim"),
    [
        ((0.7, 0.65, 0.75), (0.5, 0.45, 0.55), "it learnt from"),
        ((0.6, 0.54, 0.65), (0.5, 0.45, 0.55), "does not show that it learnt"),
        ((0.5, 0.45, 0.55), (0.5, 0.45, 0.55), "shows no learning"),
        ((0.3, 0.25, 0.35), (0.5, 0.45, 0.55), "shows no learning"),
    ],
)
def test_learning_is_claimed_only_beyond_the_noise_only_control(
    trained: tuple[float, float, float], noise_only: tuple[float, float, float], claim: str
) -> None:
    assert claim in probe_verdict(_probe(trained, noise_only))


@pytest.mark.parametrize(
    ("trained", "claim"),
    [
        (0.90, "a small gain may be luck"),
        (0.99, "noise cost more"),
        (1.02, "does not show learning"),
        (1.1, "does not show"),
    ],
)
def test_a_lower_public_loss_than_with_noise_alone_is_learning(trained: float, claim: str) -> None:
    assert claim in public_loss_verdict(PublicLoss(start=0.95, trained=trained, noise_only=1.02), Plan())


def test_losses_between_embeddings_claim_nothing() -> None:
    plan = parse_plan({"objective": {"name": "simclr"}})
    said = public_loss_verdict(PublicLoss(start=3.70, trained=0.75, noise_only=0.94), plan)
    assert "it claims nothing" in said
    assert "better" not in said
