from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privfm.data import load_images
from privfm.errors import DataError


def save(path: Path, seed: int = 0, size: tuple[int, int] = (12, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=size, dtype=np.uint8)).save(path)
    return path


def make(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save(root / name, seed)
    return root


def test_hospital_patient_image(tmp_path: Path) -> None:
    root = make(
        tmp_path, "north/ann/1.png", "north/ann/2.JPG", "north/bob/1.tif", "south/cem/1.jpeg", "south/cem/2.tiff"
    )
    images = load_images(str(root), image_size=8)
    assert images.hospitals == ("north", "south")
    assert images.patients == ("ann", "bob", "cem")
    assert images.hospital_of is not None
    assert images.hospital_of.tolist() == [0, 0, 0, 1, 1]
    assert images.patient_of.tolist() == [0, 0, 1, 2, 2]
    assert images.load(np.arange(5)).shape == (5, 1, 8, 8)
    assert not images.public
    assert not images.synthetic


def test_one_level_means_no_hospitals(tmp_path: Path) -> None:
    images = load_images(str(make(tmp_path, "ann/1.png", "bob/1.png")), image_size=8, channels=3)
    assert images.hospitals == ()
    assert images.hospital_of is None
    assert images.load(np.array([1])).shape == (1, 3, 8, 8)


def test_every_page_is_an_image_of_its_patient(tmp_path: Path) -> None:
    make(tmp_path, "ann/1.png")
    pages = [Image.open(save(tmp_path / f"../{i}.png", i)) for i in (5, 6, 7)]
    pages[0].save(tmp_path / "ann" / "stack.tif", save_all=True, append_images=pages[1:])
    images = load_images(str(tmp_path), image_size=8)
    assert images.patient_of.tolist() == [0, 0, 0, 0]
    batch = images.load(np.array([1, 2, 3]))
    assert np.abs(batch[0] - batch[1]).max() > 0.1


def test_images_as_units(tmp_path: Path) -> None:
    images = load_images(str(make(tmp_path, "h/ann/1.png", "h/ann/2.png")), image_size=8, unit="image")
    assert images.patients == ("ann#0", "ann#1")


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path, "ann/1.png", "ann/._1.png", "__MACOSX/x/1.png")
    (tmp_path / "ann" / "notes.txt").write_text("x")
    assert len(load_images(str(tmp_path), image_size=8)) == 1


def refused(root: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as caught:
        load_images(str(root), image_size=8)
    assert "\n" not in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere: no such folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "holds no images")


def test_a_hospital_without_images(tmp_path: Path) -> None:
    make(tmp_path, "north/ann/1.png")
    (tmp_path / "south").mkdir()
    refused(tmp_path, "south: the hospital has no images")


def test_a_patient_without_images(tmp_path: Path) -> None:
    make(tmp_path, "north/ann/1.png")
    (tmp_path / "north" / "bob").mkdir()
    refused(tmp_path, "bob: the patient has no images")


def test_an_image_outside_any_patients_folder(tmp_path: Path) -> None:
    refused(make(tmp_path, "ann/1.png", "stray.png"), r"stray\.png: lies in no patient's folder")


def test_mixed_depths(tmp_path: Path) -> None:
    refused(
        make(tmp_path, "north/ann/1.png", "bob/1.png"), r"bob/1\.png: lies 1 folders deep where hospital/patient/image"
    )


def test_too_deep(tmp_path: Path) -> None:
    refused(make(tmp_path, "north/ann/study/1.png", "north/bob/1.png"), r"study/1\.png: lies 3 folders deep")


def test_an_empty_image_file(tmp_path: Path) -> None:
    make(tmp_path, "ann/1.png")
    (tmp_path / "ann" / "2.png").write_bytes(b"")
    refused(tmp_path, r"2\.png: the file is empty")


def test_an_image_that_breaks_off(tmp_path: Path) -> None:
    root = make(tmp_path, "ann/1.png", "bob/1.png")
    data = (root / "bob" / "1.png").read_bytes()
    (root / "bob" / "1.png").write_bytes(data[: len(data) - 40])
    refused(tmp_path, r"bob/1\.png: not a readable image")


def test_the_first_of_several_complaints_counts_the_others(tmp_path: Path) -> None:
    make(tmp_path, "ann/1.png")
    for name in "234":
        (tmp_path / "ann" / f"{name}.png").write_bytes(b"")
    refused(tmp_path, r"2\.png: .*\(and 2 more, see `privfm data check`\)")


def test_a_link_out_of_the_folder(tmp_path: Path) -> None:
    secret = save(tmp_path / "elsewhere" / "x.png")
    make(tmp_path / "data", "ann/1.png")
    (tmp_path / "data" / "ann" / "2.png").symlink_to(secret)
    refused(tmp_path / "data", r"2\.png: links to a file outside")


def test_a_link_to_a_folder(tmp_path: Path) -> None:
    make(tmp_path / "data", "ann/1.png")
    make(tmp_path / "elsewhere", "1.png")
    (tmp_path / "data" / "bob").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "data", "bob: a link to a folder")


def test_a_name_that_would_break_the_message(tmp_path: Path) -> None:
    refused(make(tmp_path, "ann/a\nb.png"), "the name holds control characters")


def test_a_hospital_that_no_file_could_be_named_after(tmp_path: Path) -> None:
    refused(make(tmp_path, "-rf;x/ann/1.png"), "hospital '-rf;x' is not a plain name")


def test_a_number_of_patients_is_for_the_phantom_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only phantom"):
        load_images("tiles", image_size=32, patients=3)


@pytest.mark.parametrize("wrong", [{"image_size": 4}, {"channels": 2}, {"unit": "study"}])
def test_numbers_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_images("tiles", **({"image_size": 32} | wrong))  # type: ignore[arg-type]
