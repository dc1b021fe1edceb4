from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from privfm.data import check_folder, load_images
from privfm.data.dicom import read_dicom, scan_dicom
from privfm.data.pixels import Frame
from privfm.errors import DataError

TEST_FILES = Path(pydicom.__file__).parent / "data" / "test_files"
RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 16


def write(path: Path, pixels: np.ndarray = RAMP, patient: str | None = "ann", **tags: object) -> Path:
    """A DICOM file of 12 bits stored whose pixels are [rows columns] or [frames rows columns]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    if patient is not None:
        ds.PatientID = patient
    ds.InstitutionName = "Somewhere"
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path, index: int = 0) -> np.ndarray:
    return read_dicom(Frame(path, index), 8)[0]


def test_patients_come_from_patient_id_and_hospitals_from_the_first_folder(tmp_path: Path) -> None:
    write(tmp_path / "north" / "x" / "1.dcm", patient="ann")
    write(tmp_path / "north" / "y" / "2", patient="ann")
    write(tmp_path / "north" / "y" / "3.dcm", patient="bob")
    write(tmp_path / "south" / "z" / "4.dcm", patient="cem")
    images = load_images(str(tmp_path), image_size=8)
    assert images.patients == ("ann", "bob", "cem")
    assert images.hospitals == ("north", "south")
    assert images.patient_of.tolist() == [0, 0, 1, 2]


def test_patients_own_folders_are_no_hospitals(tmp_path: Path) -> None:
    write(tmp_path / "ann" / "study" / "1.dcm", patient="ann")
    write(tmp_path / "bob" / "study" / "1.dcm", patient="bob")
    assert load_images(str(tmp_path), image_size=8).hospitals == ()


def test_one_folder_level_names_no_hospital(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.dcm", patient="ann")
    write(tmp_path / "a" / "2.dcm", patient="bob")
    assert load_images(str(tmp_path), image_size=8).hospitals == ()


def test_a_file_outside_the_hospitals_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "north" / "x" / "1.dcm", patient="ann")
    write(tmp_path / "north" / "x" / "3.dcm", patient="cem")
    write(tmp_path / "2.dcm", patient="bob")
    with pytest.raises(DataError, match=r"2\.dcm: lies in no hospital's folder"):
        load_images(str(tmp_path), image_size=8)


def test_values_without_a_window_are_stretched(tmp_path: Path) -> None:
    np.testing.assert_allclose(shown(write(tmp_path / "1.dcm")), RAMP / RAMP.max(), atol=1e-6)


def test_rescale_and_window_agree_with_pydicom(tmp_path: Path) -> None:
    from pydicom.pixels.processing import apply_modality_lut, apply_windowing

    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        path = write(
            tmp_path / f"{function}.dcm",
            RescaleSlope="2",
            RescaleIntercept="-1000",
            WindowCenter="40",
            WindowWidth="400",
            VOILUTFunction=function,
        )
        ds = pydicom.dcmread(path)
        expected = apply_windowing(apply_modality_lut(ds.pixel_array, ds), ds)
        low, high = -1000.0, 4095 * 2 - 1000.0
        np.testing.assert_allclose(shown(path), (expected - low) / (high - low), atol=1e-6)


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    one = write(tmp_path / "1.dcm", WindowCenter="500", WindowWidth="200")
    two = write(tmp_path / "2.dcm", WindowCenter=["500", "100"], WindowWidth=["200", "50"])
    np.testing.assert_array_equal(shown(one), shown(two))


def test_lookup_table_of_values_of_interest(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor = [1024, 0, 12]
    table.LUTData = np.minimum(np.arange(1024) * 8, 4095).astype(np.uint16).tolist()
    table["LUTData"].VR = "US"
    path = write(tmp_path / "1.dcm", VOILUTSequence=Sequence([table]))
    np.testing.assert_allclose(shown(path), np.minimum(RAMP.astype(int) * 8, 4095) / 4095, atol=1e-6)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write(tmp_path / "1.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(shown(path), 1 - RAMP / RAMP.max(), atol=1e-6)


def test_every_frame_is_an_image(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm", np.stack([RAMP, RAMP.T, RAMP[::-1]]))
    images = load_images(str(tmp_path), image_size=8)
    assert images.patient_of.tolist() == [0, 0, 0]
    np.testing.assert_allclose(images.load(np.array([1]))[0, 0], RAMP.T / RAMP.max(), atol=1e-6)


def test_a_frames_own_window_comes_first(tmp_path: Path) -> None:
    def group(centre: float) -> Dataset:
        voi, frame = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, 200
        frame.FrameVOILUTSequence = Sequence([voi])
        return frame

    path = write(
        tmp_path / "1.dcm",
        np.stack([RAMP, RAMP]),
        PerFrameFunctionalGroupsSequence=Sequence([group(200), group(800)]),
    )
    assert shown(path, 0).mean() > shown(path, 1).mean() + 0.3


def test_a_blank_slice_is_reported_and_accepted(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm")
    write(tmp_path / "2.dcm", np.zeros((8, 8), np.uint16))
    assert len(load_images(str(tmp_path), image_size=8)) == 2
    assert [Path(place).name for place in check_folder(tmp_path).blank] == ["2.dcm"]


def test_no_patient_id(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm", patient=None)
    with pytest.raises(DataError, match=r"1\.dcm: the patient id is blank; give it a PatientID"):
        load_images(str(tmp_path), image_size=8)


def test_a_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm")
    path = write(tmp_path / "2.dcm")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"2\.dcm: not a readable DICOM image"):
        load_images(str(tmp_path), image_size=8)


def test_absurd_sizes_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "1.dcm", NumberOfFrames=2_000_000)
    with pytest.raises(DataError, match="2,000,000 frames"):
        load_images(str(tmp_path), image_size=8)


def test_dicom_and_pictures_are_not_mixed(tmp_path: Path) -> None:
    from PIL import Image

    write(tmp_path / "a" / "1.dcm")
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a" / "2.png")
    with pytest.raises(DataError, match=r"holds DICOM \(1\.dcm\) and other images \(2\.png\)"):
        load_images(str(tmp_path), image_size=8)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r'pip install "privfm\[dicom\]"'):
        load_images(str(tmp_path), image_size=8)


@pytest.mark.filterwarnings("ignore")
def test_every_file_that_pydicom_ships_is_read_or_named() -> None:
    listing = scan_dicom(TEST_FILES)
    read, complaints = 0, list(listing.complaints)
    for entry in listing.entries:
        try:
            pixels = read_dicom(entry.frame, 32)
        except DataError as error:
            complaints.append(str(error))
            continue
        read += 1
        assert pixels.ndim == 3
        assert len(pixels) in (1, 3)
        assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
    assert read > 60
    assert len(complaints) > 10
    assert all(TEST_FILES.name in complaint and "\n" not in complaint for complaint in complaints)


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_pixels_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a" / "1.dcm")
    original = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for _ in range(200):
        flipped = original.copy()
        flipped[132 + rng.integers(len(flipped) - 132, size=4)] = rng.integers(256, size=4)
        path.write_bytes(flipped.tobytes())
        report = check_folder(tmp_path)
        assert report.images + len(report.problems) + report.passed_over >= 1
