from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privfm.data import load_images
from privfm.data import manifest as manifest_module
from privfm.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(4):
        pixels = np.random.default_rng(index).integers(256, size=(10, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[5:, 10:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def write(root: Path, text: str) -> Path:
    (root / "manifest.csv").write_text(text, encoding="utf-8")
    return root


def refused(root: Path, text: str, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as caught:
        load_images(str(write(root, text)), image_size=8)
    assert "\n" not in str(caught.value)


def test_all_columns(root: Path) -> None:
    text = "path,patient,hospital,label,mask,boxes\n0.png,a,h1,cat,mask.png,10 5 20 10;0 0 2 2\n1.png,b,h2,,,\n"
    images = load_images(str(write(root, text)), image_size=8)
    assert images.patients == ("a", "b")
    assert images.hospitals == ("h1", "h2")
    assert images.class_names == ("cat",)
    assert images.labels is not None
    assert images.labels.tolist() == [0, -1]
    assert images.masks is not None
    masks = images.masks.load(np.array([1, 0]))
    assert masks[0].max() == 0
    assert masks[1].tolist() == (np.indices((8, 8)).min(axis=0) >= 4).astype(int).tolist()
    assert images.boxes is not None
    boxes = images.boxes.load(np.array([0, 1]))
    np.testing.assert_allclose(boxes[0], [[4, 4, 8, 8], [0, 0, 0.8, 1.6]], rtol=1e-6)
    assert boxes[1].shape == (0, 4)


def test_path_and_patient_suffice_in_any_order_and_with_a_byte_order_mark(root: Path) -> None:
    images = load_images(str(write(root, "\ufeffpatient, path\nann,0.png\nann,1.png\n\n")), image_size=8)
    assert images.patients == ("ann",)
    assert images.hospitals == ()
    assert images.labels is None
    assert images.masks is None
    assert images.boxes is None


def test_the_manifest_itself_can_be_named(root: Path) -> None:
    write(root, "path,patient\n0.png,a\n")
    assert len(load_images(str(root / "manifest.csv"), image_size=8)) == 1


def test_the_manifest_decides_and_not_the_folders(root: Path) -> None:
    assert len(load_images(str(write(root, "path,patient\n0.png,a\n")), image_size=8)) == 1


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", r"manifest\.csv:1: column 'path' is missing"),
        ("path\n0.png\n", r"manifest\.csv:1: column 'patient' is missing"),
        ("path,patient,age\n0.png,a,4\n", r"manifest\.csv:1: unknown column 'age'"),
        ("path,patient,path\n0.png,a,0.png\n", r"manifest\.csv:1: a column appears twice"),
        ("path,patient\n0.png,a,more\n", r"manifest\.csv:2: 3 fields where the header has 2"),
        ("path,patient\n0.png\n", r"manifest\.csv:2: 1 fields"),
        ('path,patient\n0.png,a\n1.png,"b\n', r"manifest\.csv:\d: not valid CSV"),
        ("path,patient\n0.png,a\n1.png,\n", r"manifest\.csv:3: the patient id is blank"),
        ("path,patient\n,a\n", r"manifest\.csv:2: the path is blank"),
        ("path,patient\n0.png,a\n1.png,b\n./0.png,c\n", r"manifest\.csv:4: \./0\.png is already on line 2"),
        ("path,patient\n9.png,a\n", r"manifest\.csv:2: path 9\.png: there is no such file"),
        ("path,patient\n../x.png,a\n", r"manifest\.csv:2: path \.\./x\.png leads outside"),
        ("path,patient\n/etc/passwd,a\n", r"manifest\.csv:2: path /etc/passwd leads outside"),
        ("path,patient\nmanifest.csv,a\n", r"manifest\.csv:2: path manifest\.csv: not a png"),
        ("path,patient,hospital\n0.png,a,h\n1.png,b,\n", r"manifest\.csv:3: the hospital is blank"),
        ("path,patient,hospital\n0.png,a,../h\n", r"manifest\.csv:2: hospital '\.\./h' is not a plain name"),
        ("path,patient,mask\n0.png,a,../m.png\n", r"manifest\.csv:2: mask \.\./m\.png leads outside"),
        ("path,patient,mask\n0.png,a,m.png\n", r"manifest\.csv:2: mask m\.png: there is no such file"),
        ("path,patient,boxes\n0.png,a,1 2 3\n", r"manifest\.csv:2: box '1 2 3' is not `left top right bottom`"),
        ("path,patient,boxes\n0.png,a,0 0 21 5\n", r"manifest\.csv:2: box .* leaves its image of 20x10"),
        ("path,patient,boxes\n0.png,a,5 5 5 9\n", r"manifest\.csv:2: box '5 5 5 9' is empty"),
        ("path,patient,boxes\n0.png,a,0 0 nan 5\n", r"manifest\.csv:2: box"),
        ("path,patient\n", "holds no images"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(root: Path, text: str, pattern: str) -> None:
    refused(root, text, pattern)


def test_a_link_out_of_the_folder(root: Path, tmp_path: Path) -> None:
    (root / "0.png").rename(tmp_path / "out.png")
    (root / "0.png").symlink_to(tmp_path / "out.png")
    refused(root, "path,patient\n0.png,a\n", "leads outside")


def test_an_unreadable_image_is_named(root: Path) -> None:
    (root / "1.png").write_bytes(b"")
    refused(root, "path,patient\n0.png,a\n1.png,b\n", r"manifest\.csv:3: .*1\.png: the file is empty")


def test_text_in_another_encoding(root: Path) -> None:
    (root / "manifest.csv").write_bytes("path,patient\n0.png,J\xfcrgen\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_images(str(root), image_size=8)


def test_a_huge_manifest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "_MAX_BYTES", 5)
    refused(root, "path,patient\n0.png,a\n", "larger than")


def test_a_mask_of_another_size_is_named(root: Path) -> None:
    Image.new("L", (5, 5)).save(root / "mask.png")
    images = load_images(str(write(root, "path,patient,mask\n0.png,a,mask.png\n")), image_size=8)
    assert images.masks is not None
    with pytest.raises(DataError, match=r"mask\.png: the mask has 5x5 pixels and its image 20x10"):
        images.masks.load(np.array([0]))
