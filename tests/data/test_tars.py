from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import DataError
from osteon.data import Loader, open_source
from osteon.data._tar_members import read_members
from osteon.data.source import list_source
from osteon.data.tars import expand
from osteon.modalities.sound import encode_wav
from osteon.verbs.pretrain import lasting


def png(value: int, side: int = 8) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(memory, "PNG")
    return memory.getvalue()


def write(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def shards(folder: Path, count: int = 3, each: int = 4, prefix: str = "shard") -> Path:
    """Sample k = each * shard + i is a picture of value k and of class k % 2."""
    for shard in range(count):
        values = range(shard * each, (shard + 1) * each)
        write(folder / f"{prefix}-{shard:03d}.tar",
              {f"{k:05d}.{end}": data for k in values for end, data in (("png", png(k)), ("cls", b"%d" % (k % 2)))})
    return folder


def values(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_a_folder_a_pattern_and_a_tar_are_one_source(tmp_path):
    folder = shards(tmp_path / "data")
    whole = open_source(folder, cache=False)
    named = open_source(f"{folder}/shard-{{000..002}}.tar", cache=False)
    one = open_source(folder / "shard-001.tar", cache=False)
    assert values(whole) == list(range(12)) and whole.labels.tolist() == [0, 1] * 6
    assert whole.ids[4] == "shard-001.tar/00004.png" == one.ids[0]
    assert (whole.ids, whole.fingerprint) == (named.ids, named.fingerprint)
    assert values(one) == [4, 5, 6, 7] and whole.spec.num_classes == 2


def test_it_is_the_same_data_set_as_the_files_unpacked(tmp_path):
    folder = shards(tmp_path / "data")
    with (tmp_path / "list.csv").open("w") as table:
        table.write("path,label\n" + "".join(f"files/{k:05d}.png,{k % 2}\n" for k in range(12)))
    (tmp_path / "files").mkdir()
    for k in range(12):
        (tmp_path / "files" / f"{k:05d}.png").write_bytes(png(k))
    tars, files = open_source(folder, cache=False), open_source(tmp_path / "list.csv", cache=False)
    assert np.array_equal(tars.images, files.images) and np.array_equal(tars.labels, files.labels)
    assert tars.spec == files.spec


def test_batches_in_the_middle_of_a_shard_are_a_function_of_the_step(tmp_path):
    """12 samples in shards of 4, batches of 3: steps 1 and 2 begin within a shard, in another epoch as well."""
    folder = shards(tmp_path / "data")
    loader = Loader(open_source(folder), 3, seed=7)
    course = [batch["image"].numpy().copy() for batch in loader.iterate(0, 8)]
    again = Loader(open_source(folder), 3, seed=7)  # another process, that finds the cache
    for step in (1, 2, 5, 7):
        resumed = next(iter(again.iterate(step, 8)))
        assert np.array_equal(resumed["image"].numpy(), course[step])
    assert sorted(int(v) for batch in course[:4] for v in batch[:, 0, 0, 0]) == list(range(12))


def test_any_sample_is_read_by_itself_and_nothing_is_unpacked(tmp_path):
    folder = shards(tmp_path / "data")
    listing = list_source(str(folder))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for row in (11, 0, 7, 7, 3):
        assert listing.payload(row) == png(row)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert listing.take([5, 9]).payload(1) == png(9)


def test_splits_come_from_the_names_of_shards_and_ids_pick_samples(tmp_path):
    folder = shards(shards(tmp_path / "d", 2, 4, "train"), 1, 4, "val")
    assert len(open_source(f"{folder}:train", cache=False)) == 8
    held = open_source(f"{folder}:val", cache=False)
    assert values(held) == [0, 1, 2, 3] and set(held.split) == {"val"}
    (tmp_path / "ids.txt").write_text("val-000.tar/00002.png\ntrain-001.tar/00005.png\n")
    assert values(open_source(f"{folder}@{tmp_path}/ids.txt", cache=False)) == [5, 2]
    shards(tmp_path / "e" / "train", 1)
    assert len(open_source(f"{tmp_path}/e:train", cache=False)) == 4


def test_json_gives_label_group_and_split(tmp_path):
    rows = [b'{"label": 3, "group": "p1", "split": "train"}', b'{"label": "3", "group": "p1", "split": "train"}',
            b'{"cls": 10, "speaker": 7, "split": "test"}', b'{"label": 2.0, "group": "p3", "split": "test"}']
    write(tmp_path / "x.tar", {f"a{i}.{end}": data for i, row in enumerate(rows)
                               for end, data in (("json", row), ("jpg", png(i)))})
    data = open_source(tmp_path / "x.tar", cache=False)
    assert data.class_names == ["2", "3", "10"] and data.labels.tolist() == [1, 1, 2, 0]
    assert data.groups == ["p1", "p1", "7", "p3"] and data.split == ["train", "train", "test", "test"]
    several = {"a.png": png(1), "a.json": b'{"labels": ["x", "y"]}', "b.png": png(2), "b.json": b'{"labels": []}'}
    assert open_source(write(tmp_path / "y.tar", several), cache=False).labels.tolist() == [[1, 1], [0, 0]]


def test_texts_are_classes_where_they_repeat_and_captions_where_they_differ(tmp_path):
    def made(name, texts):
        members = {f"{i}.{end}": data for i, text in enumerate(texts)
                   for end, data in (("png", png(i)), ("txt", text.encode()))}
        return open_source(write(tmp_path / name, members), cache=False)

    assert made("a.tar", ["cat", "dog\n", "cat", "dog"]).class_names == ["cat", "dog"]
    captions = made("b.tar", ["one", "two", "three", "one"])
    assert captions.labels is None and any("captions" in note for note in captions.notes)
    assert made("c.tar", ["a\nb"] * 4).labels is None


def test_a_plain_tar_is_its_files_with_folders_as_classes(tmp_path):
    plain = write(tmp_path / "p.tar", {"./x/a.1.png": png(1), "./x/a.2.png": png(2), "./y/b.png": png(3),
                                       "./y/.hidden.png": png(9), "./y/notes.md": b"-"})
    data = open_source(plain, cache=False)
    assert data.ids == ["p.tar/x/a.1.png", "p.tar/x/a.2.png", "p.tar/y/b.png"]
    assert data.class_names == ["x", "y"] and data.labels.tolist() == [0, 0, 1]
    assert any("1 .md" in note for note in data.notes)
    with_labels = {"a.seg.png": png(7), "a.png": png(1), "a.cls": b"0", "a.pyd": b"\x80\x04.", "b.JPG": png(2),
                   "b.cls": b"1"}
    data = open_source(write(tmp_path / "q.tar", with_labels), cache=False)
    assert values(data) == [1, 2] and any("1 further" in note for note in data.notes)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_and_places_are_those_the_standard_library_finds(tmp_path, form):
    members = {"a.png": png(1), f"{'d' * 80}/{'e' * 60}.png": png(2), "empty.png": b"", "b.bin": bytes(1500)}
    if form != tarfile.USTAR_FORMAT:
        members |= {f"{'long/' * 60}ü.png": png(3), "ﬁ" * 60 + ".png": png(4)}
    path = write(tmp_path / "x.tar", members, form)
    with tarfile.open(path) as tar:
        wanted = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [(m.name, m.offset, m.size) for m, _ in read_members(path)] == wanted


def test_a_tar_appended_to_another_is_read_and_what_follows_a_tar_is_not(tmp_path):
    first, second = (write(tmp_path / f"{k}.tar", {f"{k}.png": png(k)}).read_bytes() for k in (1, 2))
    (tmp_path / "both.tar").write_bytes(first + second)
    (tmp_path / "more.tar").write_bytes(first + b"something else" * 100)
    assert values(open_source(tmp_path / "both.tar", cache=False)) == [1, 2]
    assert values(open_source(tmp_path / "more.tar", cache=False)) == [1]


def test_sound_in_tars(tmp_path):
    clips = {f"{i}.{end}": data for i in range(4) for end, data in
             (("wav", encode_wav(0.1 * np.sin(np.arange(1600) * (0.1 + i)), 8000)), ("cls", b"%d" % (i % 2)))}
    data = open_source(write(tmp_path / "x.tar", clips), cache=False)
    assert data.modality == "sound" and data.labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="From tars come image and sound, not text"):
        open_source(tmp_path / "x.tar", cache=False, modality="text")


def test_a_folder_with_images_beside_tars_is_a_folder_of_images(tmp_path):
    folder = shards(tmp_path / "data", 1)
    (folder / "README.txt").write_text("about")
    assert len(open_source(folder, cache=False)) == 4
    (folder / "own.png").write_bytes(png(99))
    assert values(open_source(folder, cache=False)) == [99]


def test_the_cache_notices_a_tar_that_changed(tmp_path):
    path = write(tmp_path / "x.tar", {"a.png": png(1), "b.png": png(2)})
    assert values(open_source(path)) == [1, 2]
    write(path, {"a.png": png(3), "b.png": png(4)})
    os.utime(path, ns=(1, 1))
    assert values(open_source(path)) == [3, 4]


def test_patterns():
    assert expand("a-{08..11}.tar", "s") == [f"a-{i:02d}.tar" for i in (8, 9, 10, 11)]
    assert expand("{9..11}{x,y}.tar", "s") == ["9x.tar", "9y.tar", "10x.tar", "10y.tar", "11x.tar", "11y.tar"]
    assert expand("{a,a}.tar", "s") == ["a.tar"]
    assert lasting("{a,b}.tar") == str(Path.cwd() / "{a,b}.tar")
    for wrong, words in (("{3..1}.tar", "counts down"), ("{0..9999999}.tar", "more than 100,000"),
                         ("{0..999}{0..999}.tar", "more than 100,000")):
        with pytest.raises(DataError, match=words):
            expand(wrong, "s")
