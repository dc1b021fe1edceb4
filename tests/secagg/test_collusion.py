"""What hospitals that collude with the coordinator can learn, enumerated for small groups.

Masks whose keys the coalition cannot derive are taken as uniform; which those are comes from the package's own
shares, seeds and mask keys.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations, product

import pytest
from coalition import Coalition, Incidence, smallest_group, view_distribution
from replay import Recording, record
from rounds import identity, make_rig

from privfm.errors import ProtocolError
from privfm.secagg import ClientPolicy, Stage, client, dealing, keys, largest_max_corrupt
from privfm.secagg.framing import Signed
from privfm.secagg.messages import Agreement, Agreements, Reveal, Seed, Survivors
from privfm.secagg.shamir import evaluate, recover, weights_at_zero

GROUPS = [(3, 1), (4, 1), (5, 1), (5, 2)]


@cache
def story_of(count: int) -> Recording:
    return record(make_rig(count, length=3, policy=ClientPolicy(0, 2)))


def agree(story: Recording, name: str, survivors: tuple[str, ...]) -> client.Agreed | None:
    try:
        return client.agree(story.before[Stage.AGREE][name], Survivors(survivors).encode())[0]
    except ProtocolError:
        return None


def reveal(story: Recording, name: str, survivors: tuple[str, ...], signers: tuple[str, ...]) -> Reveal | None:
    """What an honest hospital that agreed to a set opens when shown these signers, if anything."""
    state = agree(story, name, survivors)
    if state is None:
        return None
    signed = tuple(Signed.by(identity(peer), state.context2, Agreement(peer)) for peer in signers)
    try:
        return Signed.decode(Reveal, client.unmask(state, Agreements(signed).encode())[1]).body
    except ProtocolError:
        return None


def survivor_sets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


def active_attacks(story: Recording, members: tuple[str, ...]) -> dict[tuple[tuple[str, tuple[str, ...]], ...], int]:
    """Every way to tell each honest hospital one survivor set or none: which of them open shares, under which set."""
    names = story.rig.names
    honest = [name for name in names if name not in members]
    options = {
        name: [None, *(chosen for chosen in survivor_sets(names) if agree(story, name, chosen))] for name in honest
    }
    answers: Counter[tuple[tuple[str, tuple[str, ...]], ...]] = Counter()
    opens = cache(lambda name, chosen, signers: reveal(story, name, chosen, signers) is not None)
    for told in product(*options.values()):
        answered = []
        for name, chosen in zip(honest, told, strict=True):
            signers = tuple(
                peer
                for peer in names
                if chosen
                and peer in chosen
                and (peer in members or (peer in honest and told[honest.index(peer)] == chosen))
            )
            if chosen and opens(name, chosen, signers):
                answered.append((name, chosen))
        answers[tuple(answered)] += 1
    return answers


@pytest.mark.parametrize(("count", "corrupt"), GROUPS)
def test_no_active_attack_isolates_anybody(count: int, corrupt: int) -> None:
    story = story_of(count)
    threshold = story.rig.spec.threshold
    assert corrupt <= largest_max_corrupt(count, threshold)
    for members in list(combinations(story.rig.names, corrupt))[:3]:
        coalition = Coalition(story, members)
        attacks = active_attacks(story, members)
        assert () in attacks
        for answered in attacks:
            assert len({chosen for _, chosen in answered}) <= 1
            opened = [found for name, chosen in answered if (found := reveal(story, name, chosen, chosen)) is not None]
            assert smallest_group(coalition.unknown(opened)) >= threshold - corrupt


@pytest.mark.parametrize(("count", "corrupt"), [(3, 1), (4, 2), (5, 3)])
def test_a_passive_coordinator_with_all_but_a_pair_sees_the_pairs_sum_alone(count: int, corrupt: int) -> None:
    story = story_of(count)
    assert corrupt <= story.rig.spec.threshold - 1
    everybody = story.rig.names
    opened = [found for name in everybody if (found := reveal(story, name, everybody, everybody))]
    assert len(opened) == count
    rows = Coalition(story, everybody[:corrupt]).unknown(opened)
    assert smallest_group(rows) == count - corrupt
    check_splits_look_alike(rows, ring=3)


def check_splits_look_alike(rows: Incidence, ring: int) -> None:
    """Values with one sum give one distribution of views; values with another sum give another."""
    by_sum: dict[int, list[Counter[tuple[int, ...]]]] = {}
    for values in product(range(ring), repeat=len(rows)):
        by_sum.setdefault(sum(values) % ring, []).append(view_distribution(rows, values, ring))
    for views in by_sum.values():
        assert all(view == views[0] for view in views)
    assert by_sum[0][0] != by_sum[1][0]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_shares_lie_on_polynomials_of_full_degree(count: int) -> None:
    """What `Coalition` takes for granted: shares of fewer than a threshold are no shorter polynomial's."""
    story = story_of(count)
    threshold, points = story.rig.spec.threshold, {name: point for point, name in enumerate(story.rig.names, start=1)}
    for dealer in story.rig.names:
        held = {points[name]: state.held[dealer] for name, state in story.before[Stage.AGREE].items()}
        for seed in Seed:
            shares = {point: each.of(seed).value for point, each in held.items()}
            seeds = {recover(dict(chosen), threshold) for chosen in combinations(shares.items(), threshold)}
            fewer = {recover(dict(chosen), threshold - 1) for chosen in combinations(shares.items(), threshold - 1)}
            assert len(seeds) == 1
            assert len(fewer - {None}) != 1
            assert not seeds & fewer


def test_every_coefficient_of_every_polynomial_is_drawn_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []
    split = dealing.split

    def seen(seed: bytes, points: tuple[int, ...], coefficients: list[bytes]) -> tuple[bytes, ...]:
        drawn.extend(coefficients)
        return split(seed, points, coefficients)

    monkeypatch.setattr(dealing, "split", seen)
    rig = make_rig(5, length=3)
    record(rig)
    assert len(drawn) == len(set(drawn)) == 2 * 5 * (rig.spec.threshold - 1)


def test_masks_come_from_what_a_coalition_does_not_know() -> None:
    """What `Coalition` takes for granted: another secret gives another mask, and so does another cohort."""
    vectors = make_rig(3).spec.vectors
    secrets, contexts = (bytes(32), b"\1" + bytes(31)), (b"c" * 32, b"d" * 32)
    pairs = {keys.pair_masks(s, c, "h00", "h01", vectors)[0].key for s in secrets for c in contexts}
    selves = {keys.self_masks(s, c, "h00", vectors)[0].key for s in secrets for c in contexts}
    assert len(pairs | selves) == 8


def test_before_anything_is_opened_every_view_is_alike() -> None:
    rows = Coalition(story_of(4), ("h00", "h01")).unknown([])
    views = [view_distribution(rows, values, 3) for values in product(range(3), repeat=2)]
    assert all(view == views[0] for view in views)


def test_with_a_threshold_colluding_a_vector_lies_open() -> None:
    """The analysis can fail: this many hospitals hold enough shares of both seeds."""
    story = story_of(4)
    coalition = Coalition(story, story.rig.names[:3])
    assert smallest_group(coalition.unknown([])) == 1


@pytest.mark.parametrize("threshold", [2, 3])
def test_fewer_shares_than_the_threshold_are_independent_of_the_secret(threshold: int) -> None:
    prime = 5
    for points in combinations(range(1, prime), threshold - 1):
        views = [
            Counter(
                tuple(evaluate([secret, *rest], point, prime) for point in points)
                for rest in product(range(prime), repeat=threshold - 1)
            )
            for secret in range(prime)
        ]
        assert all(view == views[0] for view in views)
        assert set(views[0].values()) == {1}


def test_a_threshold_of_shares_gives_the_secret() -> None:
    prime, threshold = 7, 3
    for secret, one, two in product(range(prime), repeat=3):
        for points in combinations(range(1, prime), threshold):
            values = [evaluate([secret, one, two], point, prime) for point in points]
            weights = weights_at_zero(points, prime)
            assert sum(w * v for w, v in zip(weights, values, strict=True)) % prime == secret


def test_seeds_of_one_round_open_nothing_in_another() -> None:
    first, second = story_of(4), record(make_rig(4, length=3, policy=ClientPolicy(0, 2)).at(round=4))
    everybody = first.rig.names
    opened = [found for name in everybody if (found := reveal(first, name, everybody, everybody))]
    known = Coalition(first, everybody[:2]).known_masks(opened)
    later = Coalition(second, everybody[:2])
    assert known.isdisjoint(later.known_masks([]))
    for name in everybody:
        state = second.before[Stage.MASK][name]
        used = {mask.key for mask in state.masks([peer for peer in everybody if peer != name])[0]}
        assert known.isdisjoint(used)
    # Not even with the very same seeds, as if a hospital's entropy had repeated itself.
    shared = first.before[Stage.MASK]["h03"]
    again = keys.self_masks(shared.self_seed, second.before[Stage.MASK]["h03"].context1, "h03", shared.own.spec.vectors)
    assert known.isdisjoint({mask.key for mask in again})
