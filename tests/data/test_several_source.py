"""Sets of several modalities: manifests, missing members, texts in cells, statistics, one member alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import DataError
from osteon.data import open_source
from osteon.modalities.several import pack_texts
from osteon.modalities.sound import encode_wav
from osteon.parts.members import Members


def write_sets(folder, rows=8, *, text=True, broken=()):
    """Grey squares of value 10 i, tones, and words; row 1 has no image, row 2 no sound, row 3 no text."""
    rng = np.random.default_rng(0)
    lines = ["image,audio,caption,label,group,split" if text else "image,audio,label,group,split"]
    for i in range(rows):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.wav").write_bytes(encode_wav(0.1 * rng.standard_normal(1280), 4000))
        if i in broken:
            (folder / f"{i}.wav").write_bytes(b"no sound")
        image, sound = "" if i == 1 else f"{i}.png", "" if i == 2 else f"{i}.wav"
        words = ["" if i == 3 else f'"square, number {i}"'] if text else []
        lines.append(",".join([image, sound, *words, "ab"[i % 2], f"g{i}", "train" if i < rows - 2 else "test"]))
    path = folder / "sets.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_manifest_of_three_columns_is_one_packed_array(tmp_path):
    data = open_source(write_sets(tmp_path), cache=False)
    members = Members.of(data.spec.traits)
    assert data.modality == "several" and members.names == ["image", "sound", "text"] and len(data) == 8
    assert data.images.shape == (8, 1, members.width) and data.images.dtype == np.float32
    there, images = members.split(data.images, members[0])
    assert there.tolist() == [True, False, *[True] * 6]
    assert [int(v) for v in images[:, 0, 4, 4]] == [0, 0, 20, 30, 40, 50, 60, 70]
    assert not members.split(data.images, members[1])[0][2] and not members.split(data.images, members[2])[0][3]
    assert data.class_names == ["a", "b"] and data.groups == [f"g{i}" for i in range(8)]
    assert any("image (7 of 8)" in note for note in data.notes)


def test_statistics_are_of_the_members_that_are_there(tmp_path):
    members = Members.of(open_source(write_sets(tmp_path), cache=False).spec.traits)
    values = np.repeat([0, 20, 30, 40, 50, 60, 70], 64) / 255
    np.testing.assert_allclose(members[0].spec.mean, values.mean(), rtol=1e-6)
    np.testing.assert_allclose(members[0].spec.std, values.std(), rtol=1e-6)
    assert members[0].spec.scale == 255 and members[2].spec.mean == (0.0,)
    assert members[2].spec.traits["vocabulary"] > 3 and members[1].spec.traits["rate"] == 4000


def test_a_part_is_read_like_the_whole(tmp_path):
    path = write_sets(tmp_path)
    whole = open_source(f"{path}:train", cache=False)
    part = open_source(f"{path}:test", cache=False, like=whole.spec)
    assert Members.of(part.spec.traits) == Members.of(whole.spec.traits) and len(part) == 2
    assert part.images.shape[1:] == whole.images.shape[1:]


def test_one_member_alone_is_a_set_with_the_others_missing(tmp_path):
    spec = open_source(f"{write_sets(tmp_path)}:train", cache=False).spec
    members = Members.of(spec.traits)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(tmp_path / "photos" / "x.png")
    data = open_source(tmp_path / "photos", cache=False, like=spec)
    assert data.images[0, 0, :3].tolist() == [1, 0, 0] and members.split(data.images, members[0])[1].max() == 99
    assert not data.images[0, 0, members[1].start:].any()
    assert open_source("digits:test", cache=False, like=spec, limit=3).images.shape == (3, 1, members.width)
    with pytest.raises(DataError, match="trained on image, sound, text"):
        open_source("waves", cache=False, like=spec)


def test_texts_are_packed_by_the_vocabulary_of_the_data(tmp_path):
    data = open_source(write_sets(tmp_path), cache=False)
    members = Members.of(data.spec.traits)
    packed = pack_texts(["square, number 4"], data.spec)
    assert packed[0, 0, :3].tolist() == [0, 0, 1]
    np.testing.assert_array_equal(members.split(packed, members[2])[1][0], members.split(data.images, members[2])[1][4])


def test_a_text_may_lie_in_a_file(tmp_path):
    path = write_sets(tmp_path)
    (tmp_path / "words.txt").write_text("square, number 4")
    path.write_text(path.read_text().replace('"square, number 4"', "words.txt"))
    data = open_source(path, cache=False)
    members = Members.of(data.spec.traits)
    texts = members.split(data.images, members[2])[1]
    assert texts[4].any() and not np.array_equal(texts[4], texts[5])
    packed = pack_texts(["square, number 4"], data.spec)
    np.testing.assert_array_equal(texts[4], members.split(packed, members[2])[1][0])


def test_what_cannot_be_read_is_named_with_its_member(tmp_path):
    data = open_source(write_sets(tmp_path, broken=(5,)), cache=False, max_skipped=0.5)
    assert [s.id for s in data.skipped] == ["5.png"] and data.skipped[0].reason.startswith("sound cannot be decoded")


@pytest.mark.parametrize(("text", "reason"), [
    ("image,sound,label\n,,x\n", "none of image, sound"), ("image,sound\n", "no rows"),
    ("image,sound\na.png\n", "has 1 cells"), ("image,label\na.png,x\n", "holds no sets")])
def test_bad_manifests(tmp_path, text, reason):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_source(tmp_path / "x.csv", cache=False, modality="several")


def test_a_manifest_of_one_modality_is_not_taken_for_several(tmp_path):
    write_sets(tmp_path)
    (tmp_path / "one.csv").write_text("image,label\n" + "".join(f"{i}.png,a\n" for i in range(4)))
    assert open_source(tmp_path / "one.csv", cache=False).modality == "image"
