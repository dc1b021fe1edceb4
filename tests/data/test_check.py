from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from privfm_cli.main import main

from privfm.data import check_folder
from privfm.data.duplicates import difference_hash, near_duplicates, thumbnail
from privfm.data.identifiers import identifier_warnings
from privfm.data.procedural import procedural_images
from privfm.errors import DataError
from privfm.federation.cohort import gather_cohort
from privfm.plan import parse_plan


def picture(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray((procedural_images(1, size, 1, np.random.default_rng(seed))[0, 0] * 255).astype(np.uint8))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(
        ["north/P1/a.png", "north/P1/b.png", "north/P1/c.png", "north/P2/a.png", "south/P3/a.png"]
    ):
        save(picture(seed), tmp_path / name)
    return tmp_path


def test_counts(root: Path) -> None:
    report = check_folder(root)
    assert (report.kind, report.patients, report.images) == ("folder", 3, 5)
    assert report.images_per_patient == (1, 1.0, 3)
    assert [(h.hospital, h.patients, h.images, h.images_per_patient) for h in report.hospitals] == [
        ("north", 2, 4, (1, 2.0, 3)),
        ("south", 1, 1, (1, 1.0, 1)),
    ]
    assert report.sizes == {"64 x 64": 5}
    assert report.modes == {"L": 5}
    assert report.usable
    assert report.problems == report.blank == report.duplicates == report.identifier_warnings == ()


def test_every_bad_file_is_listed_and_the_rest_is_counted(root: Path) -> None:
    (root / "north" / "P1" / "d.png").write_bytes(b"")
    (root / "north" / "P1" / "e.jpg").write_bytes(b"no image")
    whole = (root / "north" / "P2" / "a.png").read_bytes()
    (root / "north" / "P2" / "f.png").write_bytes(whole[: len(whole) // 2])
    save(Image.new("L", (8, 8), 7), root / "south" / "P3" / "g.png")
    (root / "west").mkdir()
    report = check_folder(root)
    assert report.images == 5
    assert not report.usable
    assert sorted(Path(problem.split(": ")[0]).name for problem in report.problems) == [
        "d.png",
        "e.jpg",
        "f.png",
        "g.png",
        "west",
    ]


def test_nothing_readable_is_still_a_report(tmp_path: Path) -> None:
    (tmp_path / "P1").mkdir()
    (tmp_path / "P1" / "a.png").write_bytes(b"x")
    report = check_folder(tmp_path)
    assert (report.images, report.patients, report.usable) == (0, 0, False)


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        check_folder(tmp_path / "nowhere")


def test_a_broken_manifest_is_a_problem_and_no_error(root: Path) -> None:
    (root / "manifest.csv").write_text("path\n")
    report = check_folder(root)
    assert report.kind == "manifest"
    assert "column 'patient' is missing" in report.problems[0]


def test_a_manifest_with_labels(root: Path) -> None:
    (root / "manifest.csv").write_text("path,patient,label\nnorth/P1/a.png,x,cat\nsouth/P3/a.png,y,\n")
    report = check_folder(root)
    assert (report.images, report.labels) == (2, {"cat": 1})


def test_patients_at_two_hospitals(root: Path) -> None:
    assert check_folder(root).max_hospitals_per_patient == 1
    save(picture(9), root / "south" / "P1" / "a.png")
    report = check_folder(root)
    assert report.shared_patients == {"P1": ("north", "south")}
    assert report.max_hospitals_per_patient == report.to_dict()["max_hospitals_per_patient"] == 2


def test_what_the_check_tells_to_declare_is_what_training_takes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(root)]) == 0
    assert capsys.readouterr().out.endswith("\nTraining would accept this folder.\n")
    for place in ("south", "west"):
        save(picture(9), root / place / "P1" / "a.png")
    assert main(["data", "check", str(root)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "refuse this folder unless the plan declares, under [data], max_hospitals_per_patient = 3:" in told
    for declared, says in (({}, "patient P1 is at hospitals"), ({"max_hospitals_per_patient": 2}, "is at 3 hospitals")):
        with pytest.raises(DataError, match=says):
            gather_cohort(parse_plan({"data": {"source": str(root), **declared}}))
    gather_cohort(parse_plan({"data": {"source": str(root), "max_hospitals_per_patient": 3}}))


def test_repeated_images_across_patients_are_found_in_other_clothes(root: Path) -> None:
    original = Image.open(root / "north" / "P1" / "a.png")
    save(original.resize((150, 130)), root / "south" / "P4" / "resized.png")
    save(original, root / "south" / "P5" / "recompressed.jpg")
    save(original.point(lambda value: value * 0.8 + 20), root / "south" / "P6" / "dimmed.png")
    save(original.filter(ImageFilter.GaussianBlur(0.7)), root / "north" / "P1" / "same_patient.png")
    report = check_folder(root)
    assert report.duplicate_pairs == 2 * 3 + 3
    assert {pair.first_patient for pair in report.duplicates} | {p.second_patient for p in report.duplicates} == {
        "P1",
        "P4",
        "P5",
        "P6",
    }
    assert all(pair.first_patient != pair.second_patient for pair in report.duplicates)


def test_different_images_are_not_called_repeated(tmp_path: Path) -> None:
    for seed in range(150):
        save(picture(seed, 32), tmp_path / f"P{seed}" / "a.png")
    assert check_folder(tmp_path).duplicate_pairs == 0


def test_pairs_agree_with_comparing_every_pair() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(2**64, size=60, dtype=np.uint64)
    flips = np.array(
        [np.bitwise_or.reduce(np.uint64(1) << rng.integers(64, size=k % 7, dtype=np.uint64)) for k in range(60)]
    )
    hashes = np.concatenate([base, base ^ flips.astype(np.uint64)])
    thumbnails = np.ones((120, 256), np.float32)
    groups = np.arange(120)
    naive = [[i, j] for i in range(120) for j in range(i + 1, 120) if int(np.bitwise_count(hashes[i] ^ hashes[j])) <= 4]
    assert near_duplicates(hashes, thumbnails, groups).tolist() == naive


def test_many_images_are_compared_in_little_time() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(2**64, size=20_000, dtype=np.uint64)
    hashes[:4000] = np.uint64(5)
    thumbnails = rng.standard_normal((20_000, 256), dtype=np.float32)
    start = time.monotonic()
    near_duplicates(hashes, thumbnails, np.arange(20_000))
    assert time.monotonic() - start < 30


def test_hash_and_thumbnail_ignore_brightness_and_contrast() -> None:
    image = procedural_images(1, 40, 1, np.random.default_rng(3))[0, 0]
    assert difference_hash(image) == difference_hash(image * np.float32(0.5) + np.float32(0.3))
    np.testing.assert_allclose(thumbnail(image), thumbnail(image * np.float32(0.5) + np.float32(0.3)), atol=1e-3)


@pytest.mark.parametrize(
    ("images_of", "expected"),
    [
        ({"anonymous": 4, "P1": 3}, "placeholder"),
        ({"1.2.840.113619.2.55": 3, "1.2.840.113619.2.56": 3}, "look like DICOM UIDs"),
        ({"20240131123000": 3, "20240131124500": 3}, "look like times"),
        ({"P001_1": 3, "P001_2": 3, "P002_1": 2, "P002_2": 3}, "may be visits"),
        ({f"case{chr(97 + i)}": 1 for i in range(20)}, "20 of 20 patients have a single image"),
        ({"everyone": 100} | {f"p{chr(97 + i)}": 2 for i in range(12)}, "patient everyone has 100 of all 124"),
    ],
)
def test_doubtful_identifiers(images_of: dict[str, int], expected: str) -> None:
    warnings = identifier_warnings(images_of)
    assert len(warnings) == 1
    assert expected in warnings[0]


@pytest.mark.parametrize(
    "names", [["P1", "P2", "P10"], ["patient_1", "patient_2", "patient_3"], ["ab-12", "ab-13"], ["00017", "00018"]]
)
def test_plain_identifiers_raise_no_doubt(names: list[str]) -> None:
    assert identifier_warnings(dict.fromkeys(names, 5)) == ()


def test_the_report_is_json(root: Path) -> None:
    report = json.loads(json.dumps(check_folder(root).to_dict()))
    assert report["usable"] is True
    assert report["patients"] == 3
    assert report["hospitals"][0]["hospital"] == "north"
