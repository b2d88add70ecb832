from __future__ import annotations

import dataclasses
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from osteon.data import Dataset, find_duplicates, open_source
from osteon.data.leaks import area_matrix


def pictures(n: int, seed: int, size: int = 32) -> np.ndarray:
    """Random pictures with most light and dark on large scales, as photographs have, (n, 3, size, size) uint8."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, 15, (n, 3, 1, 1)) + 128
    for side, strength in ((2, 30), (4, 30), (8, 25), (16, 20), (size, 8)):
        grain = rng.normal(size=(n, side, side)).astype(np.float32)
        smooth = np.stack([np.asarray(Image.fromarray(x).resize((size, size), 3)) for x in grain])
        total = total + strength * smooth[:, None]
    return np.clip(total, 0, 255).astype(np.uint8)


def named(images: np.ndarray, prefix: str) -> Dataset:
    return dataclasses.replace(Dataset.from_arrays(images), ids=[f"{prefix}{i}" for i in range(len(images))])


def altered(images: np.ndarray, how: str) -> np.ndarray:
    out = []
    for image in images:
        picture = Image.fromarray(image.transpose(1, 2, 0))
        side = picture.width
        if how == "jpeg":
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=50)
            picture = Image.open(buffer)
        elif how == "resize":
            picture = picture.resize((side * 7 // 8,) * 2, 3).resize((side,) * 2, 3)
        elif how == "brighter":
            picture = ImageEnhance.Brightness(picture).enhance(1.15)
        elif how == "flatter":
            picture = ImageEnhance.Contrast(picture).enhance(0.7)
        elif how == "grey":
            picture = picture.convert("L").convert("RGB")
        out.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(out)


def test_exact_copies_at_any_size():
    a = np.random.default_rng(0).integers(0, 255, (20, 1, 8, 8), dtype=np.uint8)
    b = np.random.default_rng(1).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)
    b[3], b[4] = a[7], a[7]
    found = find_duplicates(named(a, "a"), named(b, "b"))
    assert found.exact == [("a7", "b3"), ("a7", "b4")] and found.near == [] and len(found) == 2
    assert any("too small" in note for note in found.notes)


def test_one_changed_value_is_not_exact():
    a = pictures(3, 0, 8)
    b = a.copy()
    b[:, 0, 0, 0] ^= 1
    assert find_duplicates(named(a, "a"), named(b, "b")).exact == []


@pytest.mark.parametrize("how", ["jpeg", "resize", "brighter", "flatter", "grey"])
def test_near_copies_are_found_and_strangers_are_not(how):
    a, b = pictures(200, 0), pictures(50, 1)
    b[10:20] = altered(a[100:110], how)
    found = find_duplicates(named(a, "a"), named(b, "b"))
    assert found.near == [(f"a{100 + i}", f"b{10 + i}") for i in range(10)] and found.exact == []


def test_an_exact_copy_is_not_reported_twice():
    a = pictures(5, 0)
    found = find_duplicates(named(a, "a"), named(a[2:4], "b"))
    assert found.exact == [("a2", "b0"), ("a3", "b1")] and found.near == []


@pytest.mark.parametrize("size", [16, 24, 48])
def test_copies_of_another_size_and_colour(size):
    a = pictures(30, 0, 32)
    small = np.stack([np.asarray(Image.fromarray(x.transpose(1, 2, 0)).resize((size, size), 3).convert("L"))
                      for x in a])
    found = find_duplicates(named(a, "a"), named(small[5:8, None], "b"))
    assert found.near == [("a5", "b0"), ("a6", "b1"), ("a7", "b2")]
    assert any("sizes, channels or depths differ" in note for note in found.notes)


def test_16_bit_and_float_copies():
    a = pictures(30, 0)
    wide = a[4:6].astype(np.uint16) * 257
    assert find_duplicates(named(a, "a"), named(wide, "b")).near == [("a4", "b0"), ("a5", "b1")]
    values = a[4:6].astype(np.float32) * 3000 - 9
    assert find_duplicates(named(a, "a"), named(values, "b")).near == [("a4", "b0"), ("a5", "b1")]


def test_blank_images_are_like_everything_and_therefore_left_out():
    a = pictures(4, 0)
    blank = np.stack([np.full((3, 32, 32), 200, np.uint8), np.full((3, 32, 32), 90, np.uint8)])
    found = find_duplicates(named(np.concatenate([a, blank[:1]]), "a"), named(blank, "b"))
    assert found.exact == [("a4", "b0")] and found.near == []
    assert any("1 + 1 images are almost blank" in note for note in found.notes)


def test_almost_blank_images_are_left_out_too():
    faint = 200 + (pictures(4, 0) > 128).astype(np.uint8)  # two neighbouring values
    found = find_duplicates(named(faint, "a"), named(faint + 1, "b"))
    assert found.near == [] and any("4 + 4 images are almost blank" in note for note in found.notes)


def test_frames_do_not_make_strangers_alike():
    a, b = pictures(40, 0), pictures(40, 1)
    for images in (a, b):  # a dark picture in a white frame: the frame is most of the contrast
        inner = images[:, :, 6:-6, 6:-6] // 4
        images[:] = 255
        images[:, :, 6:-6, 6:-6] = inner
    b[0] = altered(a[3:4], "jpeg")[0]
    assert find_duplicates(named(a, "a"), named(b, "b")).near == [("a3", "b0")]


def test_smooth_strangers_are_not_copies():
    """Two skies share their gradient, not their grain."""
    rng = np.random.default_rng(0)
    sky = np.linspace(60, 230, 32)[:, None].repeat(32, 1)
    a, b = ((sky + rng.normal(0, 3, (30, 3, 32, 32))).astype(np.uint8) for _ in range(2))
    assert find_duplicates(named(a, "a"), named(b, "b")).near == []


def test_near_can_be_left_out():
    a = pictures(5, 0)
    found = find_duplicates(named(a, "a"), named(altered(a, "jpeg"), "b"), near=False)
    assert len(found) == 0 and "as asked" in found.notes[0]


def test_area_matrix_by_hand():
    np.testing.assert_allclose(area_matrix(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-7)
    np.testing.assert_allclose(area_matrix(5, 5), np.eye(5))
    np.testing.assert_allclose(area_matrix(2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]])


ROOT = Path(os.environ.get("OSTEON_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.skipif(not (ROOT / "cifar10").is_dir(), reason="CIFAR-10 is not there (set OSTEON_DATA)")
def test_on_photographs():
    test = open_source(f"{ROOT}/cifar10:test", limit=2000)
    first, second = test.subset(np.arange(1000)), test.subset(np.arange(1000, 2000))
    assert len(find_duplicates(first, second)) <= 3  # the data set holds some true ones
    mixed = np.concatenate([second.images[:900], altered(first.images[:100], "jpeg")])
    copies = dataclasses.replace(second, images=mixed)
    found = find_duplicates(first, copies)
    hits = set(found.near) & {(first.ids[i], copies.ids[900 + i]) for i in range(100)}
    assert len(hits) >= 99 and len(found) - len(hits) <= 3
