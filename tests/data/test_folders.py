from __future__ import annotations

import os

import pytest

from osteon.core.errors import DataError
from osteon.data import folders, open_source
from osteon.data.source import list_source


def values(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def test_flat_folder_is_sorted_and_unlabelled(save, tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1), ("c.JPG", 3)):
        save(name, value)
    save(".hidden.png", 9)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "README").write_text("x")
    data = open_source(tmp_path)
    assert data.ids == ["a.png", "b.png", "c.JPG"] and values(data) == [1, 2, 3]
    assert data.labels is None and data.class_names == [] and data.skipped == []
    assert any("ignored: 2 files" in note for note in data.notes)


def test_subfolders_are_classes(save, tmp_path):
    save("dog/x/2.png", 2)
    save("cat/1.png", 1)
    save("dog/1.png", 3)
    (tmp_path / "empty").mkdir()
    data = open_source(tmp_path)
    assert data.ids == ["cat/1.png", "dog/1.png", "dog/x/2.png"]
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [0, 1, 1]


def test_images_beside_subfolders_make_it_flat(save, tmp_path):
    save("cat/1.png")
    save("top.png")
    data = open_source(tmp_path)
    assert data.labels is None and data.ids == ["cat/1.png", "top.png"]
    assert any("classes: none" in note for note in data.notes)


def test_train_and_test_folders_are_splits_not_classes(save, tmp_path):
    save("train/cat/1.png", 1)
    save("train/dog/2.png", 2)
    save("test/dog/3.png", 3)
    data = open_source(tmp_path)
    assert data.class_names == ["cat", "dog"] and data.split == ["test", "train", "train"]
    assert any(f"name one as {tmp_path}:train" in note for note in data.notes)
    part = open_source(f"{tmp_path}:train")
    assert values(part) == [1, 2] and part.class_names == ["cat", "dog"]


def test_one_class_is_said(save, tmp_path):
    save("cat/1.png")
    save("cat/2.png")
    assert any("nothing to tell apart" in note for note in open_source(tmp_path).notes)


def test_links_are_followed_without_loops(save, tmp_path):
    save("root/a/1.png", 1)
    save("elsewhere/2.png", 2)
    os.symlink(tmp_path / "root", tmp_path / "root" / "a" / "loop")
    os.symlink(tmp_path / "elsewhere", tmp_path / "root" / "b")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "root" / "a" / "broken.png")
    data = open_source(tmp_path / "root", max_skipped=0.5)
    assert data.ids == ["a/1.png", "b/2.png"] and values(data) == [1, 2]
    assert [item.id for item in data.skipped] == ["a/broken.png"]


def test_unreadable_folders_are_listed(save, tmp_path, monkeypatch):
    save("a/1.png", 1)
    save("b/2.png", 2)
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", guarded)
    data = open_source(tmp_path, max_skipped=0.5)
    assert data.ids == ["a/1.png"]
    assert data.skipped[0].id == "b/" and "Permission denied" in data.skipped[0].reason
    with pytest.raises(DataError, match="max_skipped=0.5"):
        open_source(tmp_path)


def test_names_that_are_no_utf8_can_be_written(save, tmp_path):
    path = save("x.png", 5)
    os.rename(os.fsencode(path), os.fsencode(tmp_path) + b"/\xff.png")
    data = open_source(tmp_path)
    data.ids[0].encode("utf-8")
    assert values(data) == [5]


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no image"):
        open_source(tmp_path)


def test_a_folder_of_images_is_gone_through_twice_and_not_once_a_modality(save, tmp_path, monkeypatch):
    for name in ("a/x.png", "a/y.png", "b/z.png"):
        save(name)
    looked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or scan(path))
    assert list_source(str(tmp_path)).ids == ["a/x.png", "a/y.png", "b/z.png"]
    assert looked.count(str(tmp_path / "a")) == 2
    save("a/new.png")
    assert len(list_source(str(tmp_path)).ids) == 4  # nothing is remembered from one listing to the next
