"""Reading text: long texts, folders, tables; one vocabulary for all sources that are read alike."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data._sentences import CLASSES
from osteon.modalities.text import load_tokenizer


def read(data, row: int = 0) -> str:
    return load_tokenizer(data.spec.traits["tokenizer"]).decode(data.images[row, 0])


def write(path, text: str, encoding: str = "utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def long(tmp_path):
    return write(tmp_path / "book.txt", "".join(f"line {i:04d} abc\n" for i in range(1000)), "utf-8-sig")


def test_a_long_text_is_cut_into_windows_that_give_it_back(long):
    data = open_source(f"{long}:train", tokenizer="char")
    assert data.images.dtype == np.int32 and data.images.shape[1:] == (1, 128)
    tokens = data.images.reshape(-1)
    text = load_tokenizer(data.spec.traits["tokenizer"]).decode(tokens)
    assert text == "".join(f"line {i:04d} abc\n" for i in range(900)).strip()
    assert len(data) == -(-len(text) // 128) and (data.images[:-1] > 0).all()
    assert data.spec.mean == (0.0,) and data.spec.std == (1.0,) and data.spec.scale == 1.0
    assert data.spec.modality == "text" and data.spec.extent == (128,)
    assert data.ids[:2] == ["book.txt:train:000000", "book.txt:train:000001"] and data.labels is None


def test_parts_of_a_long_text_by_position(long):
    first, *others = (open_source(f"{long}:{part}", tokenizer="char", window=14, documents="lines")
                      for part in ("train", "val", "test"))
    assert [len(d) for d in (first, *others)] == [900, 50, 50]
    assert read(first) == "line 0000 abc" and read(others[0]) == "line 0900 abc"
    assert read(others[1], 49) == "line 0999 abc"
    whole = open_source(long, tokenizer="char")
    assert sorted(set(whole.split)) == ["test", "train", "val"] and whole.groups is None
    with pytest.raises(DataError, match="test, train, val"):
        open_source(f"{long}:dev")


def test_a_text_of_one_line_is_cut_between_words(tmp_path):
    path = write(tmp_path / "one.txt", "abcde " * 100)
    parts = [open_source(f"{path}:{part}", tokenizer="char", window=600) for part in ("train", "val", "test")]
    assert [len(read(d).split()) for d in parts] == [90, 5, 5] and all(set(read(d).split()) == {"abcde"} for d in parts)


def test_like_reads_other_sources_by_the_same_vocabulary(long, tmp_path):
    data = open_source(f"{long}:train", tokenizer="char", window=20)
    other = write(tmp_path / "other.jsonl", '{"text": "line \u00d6 0"}\n')
    again = open_source(other, like=data.spec)
    assert again.spec.traits["tokenizer"] == data.spec.traits["tokenizer"] and again.images.shape == (1, 1, 20)
    known = load_tokenizer(data.spec.traits["tokenizer"]).number
    assert again.images[0, 0, :9].tolist() == [known[c] for c in "line "] + [2, known[" "], known["0"], 0]
    with pytest.raises(DataError, match="no text"):
        open_source(write(tmp_path / "d" / "a.png", "").parent, like=data.spec)


def test_byte_pairs_are_the_rule_and_the_vocabulary_is_at_most_as_asked(long):
    pytest.importorskip("tokenizers")
    data = open_source(f"{long}:train", vocabulary=40)
    assert data.spec.traits["vocabulary"] <= 40 and any("bpe" in note for note in data.notes)
    assert "line 0000 abc\nline 0001" in read(data)
    assert data.fingerprint == open_source(f"{long}:train", vocabulary=40).fingerprint  # from the cache


def test_jsonl_rows_are_documents(tmp_path):
    rows = [{"text": "good day", "label": "nice", "split": "train", "group": "a", "id": "x"},
            {"text": "bad", "label": "bad", "split": "test", "group": "b"}, {"text": "  ", "label": "bad"}]
    path = write(tmp_path / "r.jsonl", "\n".join(json.dumps(r) for r in rows) + "\n\n")
    data = open_source(path, tokenizer="char", max_skipped=0.5)
    assert data.ids == ["x", "r.jsonl:2"] and data.class_names == ["bad", "nice"] and data.labels.tolist() == [1, 0]
    assert data.groups == ["a", "b"] and data.split == ["train", "test"]
    assert [(s.id, s.reason) for s in data.skipped] == [("r.jsonl:3", "is empty")]
    assert [read(data, i) for i in range(2)] == ["good day", "bad"] and data.images.shape == (2, 1, 8)
    with pytest.raises(DataError, match="33.3%"):
        open_source(path, tokenizer="char")


@pytest.mark.parametrize(("line", "match"), [("{broken", "not JSON.*line 2"), ('{"txt": "a"}', "'text'.*line 2"),
                                             ('{"text": 3}', "'text'.*line 2"), ("[1]", "'text'.*line 2")])
def test_damaged_jsonl_names_the_line(tmp_path, line, match):
    with pytest.raises(DataError, match=match):
        open_source(write(tmp_path / "r.jsonl", f'{{"text": "a"}}\n{line}\n'))


def test_numbers_as_labels_and_several_labels(tmp_path):
    path = write(tmp_path / "n.jsonl", '{"text": "ab", "label": 10}\n{"text": "b", "label": 9}\n')
    assert open_source(path, tokenizer="char").class_names == ["9", "10"]
    path = write(tmp_path / "m.jsonl", '{"text": "ab", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n')
    data = open_source(path, tokenizer="char")
    assert data.labels.tolist() == [[1, 1], [0, 0]] and data.spec.multi_label


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_with_a_column_of_text(tmp_path, ending):
    mark = "\t" if ending == "tsv" else ","
    rows = [["Text", "label", "split"], ['"two\nlines"', "a", "train"], ["one", "b", "test"]]
    path = write(tmp_path / f"t.{ending}", "\n".join(mark.join(r) for r in rows) + "\n", "utf-8-sig")
    data = open_source(path, tokenizer="char")
    assert data.class_names == ["a", "b"] and read(data) == "two\nlines" and data.split == ["train", "test"]
    assert len(open_source(f"{path}:test", tokenizer="char")) == 1


def test_a_manifest_of_files_with_captions_stays_what_it_is(tmp_path):
    path = write(tmp_path / "m.csv", "path,text\na.png,hello\n")
    with pytest.raises(DataError, match="No readable image"):
        open_source(path)
    assert read(open_source(path, modality="text", tokenizer="char")) == "hello"


def test_a_folder_with_a_subfolder_a_class(tmp_path):
    for name, text in (("x/1.txt", "aab"), ("x/2.txt", "abc"), ("y/1.txt", "ca")):
        write(tmp_path / "d" / name, text)
    data = open_source(tmp_path / "d", tokenizer="char")
    assert data.class_names == ["x", "y"] and data.labels.tolist() == [0, 0, 1]
    assert data.ids == ["x/1.txt", "x/2.txt", "y/1.txt"] and [read(data, i) for i in range(3)] == ["aab", "abc", "ca"]
    windows = open_source(tmp_path / "d", tokenizer="char", documents="running", window=4)
    assert windows.groups == data.ids and windows.labels.tolist() == [0, 0, 1]


def test_a_flat_folder_runs_on_and_names_of_files_give_splits(tmp_path):
    for name in ("w-train.txt", "w-valid.txt"):
        write(tmp_path / "d" / name, "ab\n" * 20)
    write(tmp_path / "d" / "README.md", "no text")
    data = open_source(tmp_path / "d", tokenizer="char", window=10)
    assert len(data) == 12 and set(data.split) == {"train", "valid"} and data.groups[0] == "w-train.txt"
    assert len(open_source(f"{tmp_path / 'd'}:valid", tokenizer="char", window=10)) == 6
    assert len(open_source(tmp_path / "d", tokenizer="char", documents="lines")) == 40
    whole = open_source(tmp_path / "d", tokenizer="char", documents="file")
    assert len(whole) == 2 and whole.groups is None


def test_images_with_captions_beside_them_are_images(save, tmp_path):
    for name in "ab":
        save(f"{name}.png")
        write(tmp_path / f"{name}.txt", "caption")
    assert open_source(tmp_path).modality == "image"
    assert open_source(tmp_path, modality="text", tokenizer="char").modality == "text"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_other_encodings_name_the_place(tmp_path, name):
    path = write(tmp_path / name, "text\nh\u00e4", "latin1")
    with pytest.raises(DataError, match="0xe4 at offset 6, line 2.*UTF-8"):
        open_source(path)
    if name == "a.txt":
        write(tmp_path / "b.txt", "good")
        data = open_source(tmp_path, modality="text", tokenizer="char", max_skipped=0.6, documents="file")
        assert data.ids == ["b.txt"] and "0xe4" in data.skipped[0].reason


@pytest.mark.parametrize("text", ["", " \n \n"])
def test_empty_files(tmp_path, text):
    with pytest.raises(DataError, match="empty"):
        open_source(write(tmp_path / "a.txt", text))
    with pytest.raises(DataError, match="no row"):
        open_source(write(tmp_path / "a.jsonl", text))
    with pytest.raises(DataError, match="empty"):
        open_source(write(tmp_path / "d/a.txt", text).parent)
    with pytest.raises(DataError, match="no text"):
        open_source(write(tmp_path / "e/a.md", text).parent, modality="text")


@pytest.mark.parametrize("options", [{"window": 2}, {"documents": "pages"}, {"tokenizer": "words"}, {"size": 8},
                                     {"vocabulary": 2, "tokenizer": "char"}])
def test_impossible_options(long, options):
    with pytest.raises(UsageError):
        open_source(long, **options)


def test_the_window_of_documents_by_rule(tmp_path):
    lengths = [10] * 95 + [300] * 5
    path = write(tmp_path / "r.jsonl", "".join(json.dumps({"text": "ab" * (n // 2)}) + "\n" for n in lengths))
    data = open_source(path, tokenizer="char")
    assert data.spec.extent == (32,)  # the 95th percentile is 24.5, between the 95th and 96th of 100
    assert any("5 are cut" in note for note in data.notes)
    path = write(tmp_path / "l.jsonl", json.dumps({"text": "ab" * 900}) + "\n")
    assert open_source(path, tokenizer="char").spec.extent == (256,)


def test_a_list_of_ids_picks_windows(long, tmp_path):
    data = open_source(f"{long}:train", tokenizer="char")
    ids = write(tmp_path / "ids.csv", f"id\n{data.ids[3]}\n{data.ids[1]}\n")
    part = open_source(f"{long}:train@{ids}", tokenizer="char")
    assert part.ids == [data.ids[1], data.ids[3]] and np.array_equal(part.images, data.images[[1, 3]])


def test_batches_hold_the_numbers_exactly(long):
    data = open_source(f"{long}:train", tokenizer="char")
    batch = data.batch([2, 0])
    assert set(batch) == {"text", "index"} and batch["text"].numpy().tolist() == data.images[[2, 0]].tolist()


def test_the_generated_source():
    train, test = (open_source(f"sentences:{part}", cache=False) for part in ("train", "test"))
    assert len(train) == 1400 and len(test) == 600 and train.class_names == CLASSES
    assert train.images.shape == (1400, 1, 32) and (train.images != 2).all()
    assert np.bincount(train.labels, minlength=6).min() > 200
    again = open_source("sentences:test", cache=False, like=train.spec)
    assert again.spec.traits["tokenizer"] == train.spec.traits["tokenizer"]
    assert read(again).startswith(" the ") and read(again).endswith(".")
    assert open_source("sentences:train", cache=False, tokenizer="char").spec.traits["vocabulary"] < 40
