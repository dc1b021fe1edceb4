from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privfm.models import torchvision_shim as shim
from privfm.models.torchvision_shim import non_maximum_suppression


def naive(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(overlap(boxes[index].tolist(), boxes[other].tolist()) <= threshold for other in kept):
            kept.append(index)
    return kept


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union


Found = tuple[tuple[int, int, int, int], int]

corner = st.integers(0, 20)
box = st.tuples(corner, corner, st.integers(1, 10), st.integers(1, 10))


@given(st.lists(st.tuples(box, st.integers(0, 5)), max_size=12), st.sampled_from([0.15, 0.45, 0.85]))
def test_suppression_agrees_with_a_plain_loop(
    found: list[tuple[tuple[int, int, int, int], int]], threshold: float
) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in found], dtype=torch.float64).reshape(-1, 4)
    scores = torch.tensor([score for _, score in found], dtype=torch.float64)
    assert non_maximum_suppression(boxes, scores, threshold).tolist() == naive(boxes, scores, threshold)


def test_torchvision_and_its_suppression_work_after_the_import() -> None:
    torchvision = pytest.importorskip("torchvision")
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9], [5.0, 5.0, 6.0, 6.0]])
    assert torchvision.ops.nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5).tolist() == [1, 2]


def test_nothing_is_declared_where_torchvision_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim.importlib, "import_module", lambda name: ModuleType(name))
    monkeypatch.setattr(shim, "_declare_operators", lambda: pytest.fail("declared operators that exist"))
    assert shim._import_timm().__name__ == "timm"


def test_another_failure_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise RuntimeError("libtorch is torn")

    monkeypatch.setattr(shim.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="torn"):
        shim._import_timm()
