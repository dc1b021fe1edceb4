"""docs/protocol.md says what the code does."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from privfm.secagg import Neighbours, messages, upload
from privfm.secagg.driver import TRANSITIONS, Client, state_diagram
from privfm.secagg.sparse import choose_neighbours, smallest_group
from privfm.secagg.sparse import messages as sparse_messages
from privfm.secagg.stages import Stage

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_diagram_is_the_codes_own_table() -> None:
    assert f"```mermaid\n{state_diagram()}\n```" in TEXT


def test_the_table_covers_each_stage_once_and_in_order() -> None:
    assert [transition.stage for transition in TRANSITIONS] == list(Stage)
    for earlier, later in pairwise(TRANSITIONS):
        assert earlier.after is later.before
    for stage in Stage:
        assert callable(getattr(Client, stage.value))


def documented_types() -> dict[str, tuple[int, str]]:
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \| .* \| (.*) \|$", TEXT, flags=re.MULTILINE)
    return {name.strip(): (int(number), signed) for number, name, signed in rows}


@pytest.mark.parametrize(
    "name", ["KeyPackage", "Cohort", "Deal", "Dealing", "Deliveries", "Survivors", "Agreement", "Agreements", "Reveal"]
)
def test_message_types_and_signatures_are_as_written(name: str) -> None:
    kind = getattr(messages, name)
    words = "key package" if name == "KeyPackage" else name.lower()
    number, signed = documented_types()[words]
    assert number == kind.TYPE
    assert signed.startswith(f"`{kind.STAGE}`") if hasattr(kind, "STAGE") else signed == "no"


def test_the_upload_is_among_them() -> None:
    assert documented_types()["upload"][0] == upload.TYPE
    assert sorted(number for number, _ in documented_types().values()) == list(range(1, 17))


@pytest.mark.parametrize("name", ["Anchor", "Choice", "Neighbourhood", "SparseDeliveries", "Masking", "Evidence"])
def test_messages_of_the_sparse_graph_are_as_written(name: str) -> None:
    kind = getattr(sparse_messages, name)
    number, signed = documented_types()["sparse deliveries" if name == "SparseDeliveries" else name.lower()]
    assert number == kind.TYPE
    assert signed.startswith(f"`{kind.STAGE}`") if hasattr(kind, "STAGE") else signed == "no"


def test_parameters_of_the_sparse_graph_are_as_written() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+), (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) > 5
    for row in rows:
        cohort, corrupt, dropped, degree, threshold, group = map(int, row)
        graph = choose_neighbours(cohort, max_corrupt=corrupt, max_dropped=dropped)
        assert graph == Neighbours(degree, threshold)
        assert smallest_group(cohort, graph, corrupt) == group
