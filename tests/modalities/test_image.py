from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteon.modalities import image as im
from osteon.modalities._measure import measure, scale_of


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims any size."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def colours(values: list[list[tuple[int, ...]]], mode: str) -> Image.Image:
    picture = Image.new(mode, (len(values[0]), len(values)))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            picture.putpixel((x, y), value if len(value) > 1 else value[0])
    return picture


def test_rgb_and_grey_are_kept():
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    np.testing.assert_array_equal(im.decode(encoded(Image.fromarray(rgb))), rgb)
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(im.decode(encoded(Image.fromarray(grey)))[:, :, 0], grey)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_is_applied_once(orientation, kind):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
             6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}
    stored = np.ascontiguousarray(turns[orientation](upright))  # turned so that the tag turns it back
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(stored), kind, exif=exif)
    np.testing.assert_array_equal(im.decode(data)[:, :, 0], upright)


def test_damaged_exif_does_not_lose_the_picture():
    picture = Image.new("RGB", (4, 4), (9, 8, 7))
    assert im.decode(encoded(picture, "PNG", exif=b"Exif\x00\x00II*\x00broken")).shape == (4, 4, 3)


def test_alpha_is_composited_over_white():
    picture = colours([[(100, 0, 200, 255), (100, 0, 200, 0), (0, 0, 0, 51)]], "RGBA")
    # opaque stays, transparent is white, a fifth of black over white is 255 * 4/5
    np.testing.assert_array_equal(im.decode(encoded(picture))[0], [[100, 0, 200], [255, 255, 255], [204, 204, 204]])
    grey = colours([[(40, 255), (40, 0)]], "LA")
    np.testing.assert_array_equal(im.decode(encoded(grey))[0], [[40], [255]])
    assert im.read_header(encoded(grey)).channels == 1


def test_palette_becomes_rgb_and_its_transparency_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putdata([0, 1]) if not hasattr(picture, "put_flattened_data") else picture.put_flattened_data([0, 1])
    np.testing.assert_array_equal(im.decode(encoded(picture))[0], [[10, 20, 30], [40, 50, 60]])
    np.testing.assert_array_equal(im.decode(encoded(picture, transparency=0))[0], [[255, 255, 255], [40, 50, 60]])


def test_cmyk_becomes_rgb():
    picture = Image.new("CMYK", (1, 1), (0, 0, 0, 0))
    np.testing.assert_array_equal(im.decode(encoded(picture, "TIFF"))[0, 0], [255, 255, 255])
    picture = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    np.testing.assert_array_equal(im.decode(encoded(picture, "TIFF"))[0, 0], [0, 255, 255])


def test_one_bit_becomes_grey_of_full_range():
    values = np.array([[True, False]])
    image = im.decode(encoded(Image.fromarray(values)))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0, :, 0], [255, 0])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_values(kind):
    values = np.array([[0, 257, 65535]], np.uint16)
    data = encoded(Image.fromarray(values), kind)
    assert im.read_header(data) == im.Header(1, 3, 1, "uint16")
    image = im.decode(data)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image[0, :, 0], values[0])


def test_big_endian_16_bit_and_32_bit_integers():
    pgm = b"P5\n2 1\n65535\n" + bytes([1, 2, 255, 255])
    np.testing.assert_array_equal(im.decode(pgm)[0, :, 0], [258, 65535])
    wide = encoded(Image.fromarray(np.array([[70000]], np.int32)), "TIFF")
    with pytest.raises(im.Unreadable, match="0..65535"):
        im.decode(wide)


def test_float_is_kept_and_nan_refused():
    values = np.array([[-1.5, 1e6]], np.float32)
    np.testing.assert_array_equal(im.decode(encoded(Image.fromarray(values), "TIFF"))[0, :, 0], values[0])
    values[0, 0] = np.nan
    with pytest.raises(im.Unreadable, match="NaN"):
        im.decode(encoded(Image.fromarray(values), "TIFF"))
    with pytest.raises(im.Unreadable, match="NaN"):
        im.decode(np.full((2, 2), np.inf, np.float32))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(im.decode(data)[0, 0], [255, 0, 0])


def test_bombs_are_refused_from_the_header():
    for width, height in ((12_000, 15_000), (30_000, 30_000)):  # below and above the limit where Pillow itself refuses
        with pytest.raises(im.Unreadable, match="bomb"), im.strict_pillow():
            im.read_header(png_claiming(width, height))
        with pytest.raises(im.Unreadable, match="bomb"), im.strict_pillow():
            im.decode(png_claiming(width, height))
    with pytest.raises(im.Unreadable, match="4 x 4"):
        im.decode(encoded(Image.new("L", (4, 4))), max_pixels=15)
    assert im.decode(encoded(Image.new("L", (4, 4))), max_pixels=16).shape == (4, 4, 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_truncated_files_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(im.Unreadable):
        im.decode(data[:len(data) // 2])


def test_truncated_files_are_refused_whatever_the_program_has_set(monkeypatch):
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), "JPEG")
    with im.strict_pillow(), pytest.raises(im.Unreadable):
        im.decode(data[:len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_reasons(tmp_path: Path):
    import os

    with pytest.raises(im.Unreadable, match="not found"):
        im.decode(tmp_path / "none.png")
    with pytest.raises(im.Unreadable, match="empty"):
        im.decode(b"")
    with pytest.raises(im.Unreadable, match="known format"):
        im.decode(b"this is text, not a picture")
    with pytest.raises(im.Unreadable, match="known format"):  # would start ghostscript
        im.decode(encoded(Image.new("RGB", (4, 4)), "EPS"))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(im.Unreadable, match="regular"):
        im.decode(tmp_path / "pipe.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_header_tells_what_decoding_gives(mode):
    picture = Image.new(mode, (5, 3))
    data = encoded(picture, "TIFF")
    image = im.decode(data)
    assert im.read_header(data) == im.Header(3, 5, image.shape[2], image.dtype.name)


def test_square_takes_the_centre():
    image = np.arange(3 * 7, dtype=np.uint8).reshape(3, 7, 1)
    np.testing.assert_array_equal(im.square(image, 3), image[:, 2:5].transpose(2, 0, 1))
    np.testing.assert_array_equal(im.square(image.transpose(1, 0, 2), 3)[0], image.transpose(1, 0, 2)[2:5, :, 0])


@pytest.mark.parametrize(("dtype", "channels"),
                         [("uint8", 3), ("uint8", 1), ("uint8", 5), ("uint16", 1), ("float32", 2)])
def test_resizing_keeps_constants_and_type(dtype, channels):
    image = np.full((9, 12, channels), 201, dtype)
    out = im.square(image, 6)
    assert out.shape == (channels, 6, 6) and out.dtype == dtype
    np.testing.assert_array_equal(out, 201)


def test_resizing_16_bit_clips_and_rounds_instead_of_wrapping():
    image = np.zeros((16, 16, 1), np.uint16)
    image[:, 8:] = 65535
    out = im.square(image, 24)[0].astype(int)  # bicubic overshoots on both sides of the edge
    assert out[:, 0].max() == 0 and out[:, -1].min() == 65535
    assert (np.diff(out[:, :12], axis=1) >= -3000).all() and out[:, :8].max() < 10_000


def test_a_very_long_image_needs_little_memory():
    assert im.square(np.zeros((1, 2_000_000, 1), np.uint8), 224).shape == (1, 224, 224)


def test_channels():
    rgb = np.array([255, 0, 0], np.uint8).reshape(3, 1, 1)
    assert im.to_channels(rgb, 1).item() == 76  # 0.299 * 255 = 76.245
    np.testing.assert_array_equal(im.to_channels(rgb[:1], 3).ravel(), [255, 255, 255])
    with pytest.raises(im.Unreadable, match="2 channels"):
        im.to_channels(np.zeros((2, 1, 1), np.uint8), 3)


def test_depths_are_inverse_to_each_other():
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    wide = im.to_depth(values, "uint16")
    assert wide.max() == 65535 and wide.ravel()[1] == 257
    np.testing.assert_array_equal(im.to_depth(wide, "uint8"), values)
    assert im.to_depth(np.array([128, 129], np.uint16), "uint8").tolist() == [0, 1]
    with pytest.raises(im.Unreadable, match="float32"):
        im.to_depth(np.zeros(1, np.float32), "uint8")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_statistics_equal_the_direct_formula(dtype, chunk):
    rng = np.random.default_rng(0)
    images = (rng.random((7, 2, 3, 3)) * [[[[250.0]], [[9.0]]]]).astype(dtype)
    scale = scale_of(dtype)
    mean, std = measure(images, scale, chunk=chunk)
    direct = images.astype(np.float64) / scale
    np.testing.assert_allclose(mean, direct.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, direct.std((0, 2, 3)), rtol=1e-10)


def test_statistics_by_hand():
    mean, std = measure(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), 255.0)
    assert mean == (0.5,) and std == (0.5,)
    mean, std = measure(np.full((2, 1, 2, 2), 1e8, np.float32), 1.0, chunk=1)
    assert mean == (1e8,) and std == (0.0,)


def test_bytes_are_counted_in_parts_of_any_size(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 7), dtype=np.uint8)
    whole = measure(images, 255.0)
    for cells in (1, 80, 10**6):  # less than an image, two images, all at once
        monkeypatch.setattr("osteon.modalities._measure._CELLS", cells)
        assert measure(images, 255.0) == whole
        assert measure(np.asfortranarray(images), 255.0) == whole


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "CMYK", "I;16", "F"])
def test_a_square_is_decoded_as_decoding_and_cutting_it_gives(mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (21, 37, 3), dtype=np.uint8))
    picture = picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
    for kind in ("TIFF", "JPEG") if mode in ("L", "RGB", "CMYK") else ("TIFF",):
        data = encoded(picture, kind)
        for size in (11, 16, 21, 40):
            np.testing.assert_array_equal(im.decode_square(data, size), im.square(im.decode(data), size))


def test_a_large_jpeg_is_decoded_at_a_reduced_size():
    """96 pixels for 24: a half (48) leaves twice the side, a quarter would not; 95 for 24: nothing does."""
    y, x = np.mgrid[:96, :120] / 96
    smooth = np.stack([255 * x / 1.25, 255 * y, 128 + 100 * np.sin(6 * x * y)], -1).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0)
    half = Image.open(io.BytesIO(data))
    half.draft(None, (60, 48))
    assert half.size == (60, 48)
    wanted = im.square(np.asarray(half.convert("RGB")), 24)
    found = im.decode_square(data, 24)
    np.testing.assert_array_equal(found, wanted)
    full = im.square(im.decode(data), 24)
    assert 0 < np.abs(found.astype(int) - full).mean() < 0.5
    less = encoded(Image.fromarray(smooth[:95]), "JPEG")
    np.testing.assert_array_equal(im.decode_square(less, 24), im.square(im.decode(less), 24))


def test_a_reduced_jpeg_stands_upright_too():
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    found = im.decode_square(encoded(Image.fromarray(left), "JPEG", exif=exif), 8)
    assert found[0, 0].min() > 250 and found[0, 7].max() < 5
