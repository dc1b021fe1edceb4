from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from privfm.data import decoding
from privfm.data.decoding import read_header, read_image, read_mask, to_unit_range
from privfm.data.pixels import Frame
from privfm.data.resizing import resize
from privfm.errors import DataError

RAMP8 = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
RAMP16 = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


def read(path: Path, index: int = 0, of: int = 1) -> np.ndarray:
    return read_image(Frame(path, index, of), 8)


def test_eight_bit_grey_and_colour(tmp_path: Path) -> None:
    Image.fromarray(RAMP8).save(tmp_path / "g.png")
    colour = np.stack([RAMP8, RAMP8.T, 255 - RAMP8], axis=-1)
    Image.fromarray(colour).save(tmp_path / "c.png")
    np.testing.assert_allclose(read(tmp_path / "g.png"), RAMP8[None] / 255, atol=1e-6)
    np.testing.assert_allclose(read(tmp_path / "c.png"), colour.transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_depth(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(RAMP16).save(path)
    np.testing.assert_allclose(read(path), RAMP16[None] / 65535, atol=1e-6)


def test_sixteen_bit_colour_tiff(tmp_path: Path) -> None:
    colour = np.stack([RAMP16, RAMP16.T, RAMP16], axis=-1)
    tifffile.imwrite(tmp_path / "deep.tif", colour, photometric="rgb")
    assert read_header(tmp_path / "deep.tif").width == 8
    np.testing.assert_allclose(read(tmp_path / "deep.tif"), colour.transpose(2, 0, 1) / 65535, atol=1 / 255)


def test_depths_that_pillow_does_not_know(tmp_path: Path) -> None:
    colour = np.stack([RAMP16, RAMP16.T, RAMP16], axis=-1).astype(np.uint32) * 2
    tifffile.imwrite(tmp_path / "c32.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "planes.tif", colour.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("c32.tif", "planes.tif"):
        assert read_header(tmp_path / name).pages == 1
        np.testing.assert_allclose(read(tmp_path / name), colour.transpose(2, 0, 1) / 131070, atol=1e-6)


def test_white_is_zero_is_turned_round(tmp_path: Path) -> None:
    for name, values, top in (("w8.tif", RAMP8, 255), ("w16.tif", RAMP16, 65535)):
        tifffile.imwrite(tmp_path / name, values, photometric="miniswhite")
        np.testing.assert_allclose(read(tmp_path / name), 1 - values[None] / top, atol=1e-6)


def test_float_tiff_is_stretched_unless_in_unit_range(tmp_path: Path) -> None:
    values = np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8)
    tifffile.imwrite(tmp_path / "wide.tif", values)
    np.testing.assert_allclose(read(tmp_path / "wide.tif")[0], (values + 3) / 8, atol=1e-6)
    tifffile.imwrite(tmp_path / "unit.tif", values / 10 + 0.4)
    np.testing.assert_allclose(read(tmp_path / "unit.tif")[0], values / 10 + 0.4, atol=1e-6)


def test_every_page_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.fromarray(RAMP8), Image.fromarray(RAMP8.T.copy())]
    pages[0].save(tmp_path / "two.tif", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / "two.tif").pages == 2
    np.testing.assert_allclose(read(tmp_path / "two.tif", 1, 2)[0], RAMP8.T / 255, atol=1e-6)


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    rgba = np.full((4, 4, 4), 200, dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[:2, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    loaded = read(tmp_path / "a.png")
    assert loaded[:, :2].max() == 0
    np.testing.assert_allclose(loaded[:, 2:], 200 / 255, atol=1e-6)


def test_palette_means_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray((np.arange(16) % 2).astype(np.uint8).reshape(4, 4)).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.save(tmp_path / "p.png")
    loaded = read(tmp_path / "p.png")
    assert loaded.shape[0] == 3
    assert loaded[0, 0].tolist() == [0, 1, 0, 1]
    assert loaded[1:].max() == 0


def test_orientation_tag_is_followed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.repeat(RAMP8, 4, axis=0)).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    header = read_header(tmp_path / "turned.jpg")
    assert (header.width, header.height) == (32, 8)
    assert read(tmp_path / "turned.jpg").shape[-2:] == (8, 32)


def test_large_jpegs_are_decoded_at_a_fraction(tmp_path: Path) -> None:
    Image.fromarray(np.tile(RAMP8, (100, 100)) // 2 + np.repeat(np.repeat(RAMP8, 100, axis=0), 100, axis=1) // 2).save(
        tmp_path / "large.jpg"
    )
    assert max(read(tmp_path / "large.jpg").shape[-2:]) <= 200


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_large_images_are_averaged_on_the_way(tmp_path: Path, mode: str) -> None:
    smooth = np.linspace(0, 200, 480 * 640).reshape(480, 640).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    image.save(tmp_path / "large.png")
    loaded = read(tmp_path / "large.png")
    assert max(loaded.shape[-2:]) <= 64
    exact = resize(np.asarray(image.convert("L"), np.float32) / 255, 8, 8)
    np.testing.assert_allclose(resize(loaded[0], 8, 8), exact, atol=0.02)


def read_both(path: Path) -> np.ndarray:
    read_header(path)
    return read(path)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("damage", [cut, lambda data: b"", lambda data: b"hello" * 40])
def test_damaged_files_are_named(tmp_path: Path, suffix: str, damage) -> None:
    path = tmp_path / f"bad.{suffix}"
    noise = np.random.default_rng(0).integers(256, size=(64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"bad\.{suffix}: .*leave it out"):
        read_both(path)


@pytest.mark.filterwarnings("ignore")
def test_flipped_bytes_give_pixels_or_a_named_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(24, 24), dtype=np.uint8)
    refused = 0
    for suffix in ("png", "jpg", "tif"):
        good = tmp_path / f"good.{suffix}"
        Image.fromarray(noise).save(good)
        original = np.frombuffer(good.read_bytes(), dtype=np.uint8)
        path = tmp_path / f"flipped.{suffix}"
        for _ in range(150):
            flipped = original.copy()
            flipped[rng.integers(len(flipped), size=3)] = rng.integers(256, size=3)
            path.write_bytes(flipped.tobytes())
            try:
                pixels = read_both(path)
            except DataError:
                refused += 1
            else:
                assert np.isfinite(pixels).all()
                assert pixels.min() >= 0
                assert pixels.max() <= 1
    assert refused > 50


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: the file is missing"):
        read(tmp_path / "gone.png")


def test_blank_images_are_refused_but_blank_slices_are_not(tmp_path: Path) -> None:
    blank = Image.new("L", (8, 8), 40)
    blank.save(tmp_path / "blank.png")
    with pytest.raises(DataError, match=r"blank\.png: the image is blank"):
        read(tmp_path / "blank.png")
    blank.save(tmp_path / "stack.tif", save_all=True, append_images=[Image.fromarray(RAMP8)])
    assert read(tmp_path / "stack.tif", 0, 2).max() == pytest.approx(40 / 255)


def test_absurd_sizes_are_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RAMP8).save(tmp_path / "claims.png")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 63)
    with pytest.raises(DataError, match="more than 63 pixels"):
        read_header(tmp_path / "claims.png")
    with pytest.raises(DataError, match="more than 63 pixels"):
        read(tmp_path / "claims.png")


def test_pillows_own_bomb_limit_stays_on() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS <= 89_478_485


def test_masks_are_classes(tmp_path: Path) -> None:
    classes = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    Image.fromarray(classes).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == classes.tolist()
    Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).save(tmp_path / "b.png")
    assert read_mask(tmp_path / "b.png").tolist() == [[0, 1], [1, 0]]
    Image.fromarray(np.stack([classes * 80] * 3, axis=-1)).save(tmp_path / "g.png")
    assert read_mask(tmp_path / "g.png").tolist() == (classes * 80).tolist()


def test_colour_masks_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.eye(3, dtype=np.uint8)[None] * 200).save(tmp_path / "c.png")
    with pytest.raises(DataError, match=r"c\.png: a mask has one class a pixel"):
        read_mask(tmp_path / "c.png")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite"):
        to_unit_range(np.array([0.0, np.nan]))
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0.0, np.nan]], dtype=np.float32))
    with pytest.raises(DataError, match=r"nan\.tif: not a readable image"):
        read(tmp_path / "nan.tif")
