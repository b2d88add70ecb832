from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data._series_files import looks_like_series, parse_times, read_ts
from osteon.data._series_windows import split_rows
from osteon.data.series import list_path, open_long

NAN = np.nan


def write_long(path: Path, rows: int = 100, *, columns=None, start=0, step=1, separator=",") -> Path:
    """A csv of hours; channel ``a`` counts rows, ``b`` is ten times that."""
    columns = columns or {"a": [str(i) for i in range(rows)], "b": [str(10 * i) for i in range(rows)]}
    times = np.datetime64("2020-01-01T00:00") + np.arange(start, start + rows * step, step) * np.timedelta64(1, "h")
    lines = [separator.join(["date", *columns])]
    lines += [separator.join([str(t).replace("T", " "), *(c[i] for c in columns.values())])
              for i, t in enumerate(times)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_long_series_is_recognised_and_cut_into_windows_that_cross_no_border(tmp_path):
    path = write_long(tmp_path / "x.csv")
    data = open_source(path, window=8, hop=4, cache=False)
    assert data.modality == "series" and data.images.shape[1:] == (2, 8) and data.labels is None
    first = data.images[:, 0, 0].astype(int)
    assert first.tolist() == [*range(0, 53, 4), 60, 64, 68, 72, 80, 84, 88, 92]
    np.testing.assert_array_equal(data.images[3, 0], np.arange(12, 20))
    np.testing.assert_array_equal(data.images[:, 1], 10 * data.images[:, 0])
    for row, part in zip(data.images[:, 0], data.split, strict=True):
        low, high = {"train": (0, 60), "val": (60, 80), "test": (80, 100)}[part]
        assert low <= row.min() and row.max() < high
    assert data.ids[1] == "0000004" and len(open_source(f"{path}:val", window=8, hop=4, cache=False)) == 4


def test_scale_is_that_of_the_training_part_whatever_is_read(tmp_path):
    path = write_long(tmp_path / "x.csv")
    for source in (path, f"{path}:test"):
        spec = open_source(source, window=8, cache=False).spec
        np.testing.assert_allclose(spec.mean, [29.5, 295])
        np.testing.assert_allclose(spec.std, [np.arange(60).std(), 10 * np.arange(60).std()])


def test_windows_by_rule_and_their_notes(tmp_path):
    data = open_source(write_long(tmp_path / "x.csv", 1000), cache=False)
    assert data.images.shape[2] == 32  # the largest power of two of which 200 rows hold 4
    text = " ".join(data.notes)
    for words in ("window: 32 steps (rule", "hop: 1 steps", "a row every 3,600 s",
                  "rows of train 600, val 200, test 200 (rule: 60, 20 and 20 %", "no window crosses a border"):
        assert words in text, words


def test_parts_by_rows_or_shares():
    assert split_rows("8640,2880,2880", 17420, "x") == {"train": (0, 8640), "val": (8640, 11520),
                                                        "test": (11520, 14400)}
    assert split_rows("0.6,0.2,0.2", 17420, "x") == {"train": (0, 10452), "val": (10452, 13936), "test": (13936, 17420)}
    assert split_rows("[0.5, 0.5]", 7, "x") == {"train": (0, 3), "test": (3, 7)}
    for text in ("0.6", "a,b", "0.9,0.9", "10,-1", "1.5,2", "0.5,10", "nan,1"):
        with pytest.raises(UsageError, match="does not say how to split"):
            split_rows(text, 100, "x")
    with pytest.raises(DataError, match="need 110 rows; the series has 100"):
        split_rows("60,50", 100, "x")
    with pytest.raises(DataError, match="too short"):
        split_rows("0.6,0.2,0.2", 2, "x")


def test_gaps_are_filled_inside_a_part_alone_and_counted(tmp_path):
    a = [str(i) for i in range(100)]
    for i in (0, 10, 11, 59, 60):
        a[i] = ""
    a[61] = "NaN"
    data = open_source(write_long(tmp_path / "x.csv", columns={"a": a, "b": ["1"] * 100}), window=8, hop=1, cache=False)
    values = {int(i): row[0] for i, row in zip(data.ids, data.images, strict=True)}
    np.testing.assert_array_equal(values[4], np.arange(4, 12))
    assert values[0][0] == 1 and values[52][-1] == 58 and values[60][0] == 62  # nearest, never across the border
    text = " ".join(data.notes)
    assert "missing: 6 values (3.00%)" in text and "b is constant there; its deviation is taken as 1" in text


def test_a_window_with_nothing_in_it_is_skipped_with_a_reason(tmp_path):
    a = ["?" if 20 <= i < 30 else str(i) for i in range(100)]
    path = write_long(tmp_path / "x.csv", columns={"a": a, "b": a})
    with pytest.raises(DataError, match="0000020 has all values missing"):
        open_source(path, window=8, hop=1, cache=False)
    data = open_source(path, window=8, hop=1, cache=False, max_skipped=0.1)
    assert [s.id for s in data.skipped] == ["0000020", "0000021", "0000022"] and "0000020" not in data.ids
    alone = open_source(path, window=8, hop=1, cache=False, max_skipped=0.1, independent=True)
    assert {s.id for s in alone.skipped} == {f"{r:07d}:{c}" for r in (20, 21, 22) for c in "ab"}


def test_independent_channels_are_samples_of_their_own_in_training_deviations(tmp_path):
    path = write_long(tmp_path / "x.csv")
    data = open_source(path, window=8, hop=8, cache=False, independent=True, norm="series")
    assert data.images.shape[1] == 1 and data.ids[:3] == ["0000000:a", "0000000:b", "0000008:a"]
    train = np.arange(60)
    np.testing.assert_allclose(data.images[0, 0], (np.arange(8) - train.mean()) / train.std(), rtol=1e-5)
    np.testing.assert_allclose(data.images[1], data.images[0], rtol=1e-5)
    assert data.spec.mean == (0.0,) and data.spec.std == (1.0,)
    own = open_source(path, window=8, hop=8, cache=False, independent=True)
    np.testing.assert_allclose(own.images[5, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(own.images[5, 0].std(), 1, rtol=1e-5)


def test_other_data_are_read_like_those_of_the_model(tmp_path):
    spec = open_source(write_long(tmp_path / "x.csv"), window=8, hop=4, split="0.5,0.5", cache=False).spec
    columns = {"b": [str(10 * i) for i in range(60)], "z": ["7"] * 60, "a": [str(i) for i in range(60)]}
    other = open_source(write_long(tmp_path / "y.csv", 60, columns=columns), like=spec, cache=False)
    assert other.images.shape == (12, 2, 8) and set(other.split) == {"train", "test"}
    np.testing.assert_array_equal(other.images[1, 0], np.arange(4, 12))  # channels by name: a, then b
    assert dict(other.spec.traits) == {**spec.traits}
    fewer = write_long(tmp_path / "z.csv", 60, columns={"q": ["1", "2"] * 30})
    assert open_source(fewer, like=spec, cache=False).spec.channels == 1  # which fit_samples then refuses


def test_time_must_increase_and_uneven_steps_are_noted(tmp_path):
    path = write_long(tmp_path / "x.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *lines[2:4], lines[1], *lines[4:]]))
    assert not looks_like_series(path)
    with pytest.raises(DataError, match="Time does not increase from row 2 to row 3"):
        open_source(path, modality="series", cache=False)
    path.write_text("\n".join([*lines[:30], *lines[33:]]))
    assert any("1 of 96 steps differ" in note for note in open_source(path, cache=False).notes)


@pytest.mark.parametrize(("text", "taken"), [
    ("date,a\n2020-01-01,1\n2020-01-02,2\n2020-01-03,\n", True),
    ("time;a\n0.5;1\n1.0;2\n1.5;3\n", True),
    ("date,a\n01/02/2020 00:00,1\n01/02/2020 01:00,2\n", True),
    ("date,a\n2020-01-02,1\n2020-01-01,2\n", False),  # goes back
    ("date,a\n2020-01-01,1\n2020-01-02,x\n", False),  # words
    ("id,a\n1,1\n2,2\n3,3\n", False),  # a count is no time
    ("date,label\n2020-01-01,1\n2020-01-02,2\n", False),
    ("date,path\n2020-01-01,1\n2020-01-02,2\n", False),
    ("path,label\na.png,1\nb.png,2\n", False), ("date\n2020-01-01\n2020-01-02\n", False), ("", False)])
def test_what_is_taken_for_a_series_without_being_asked(tmp_path, text, taken):
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert looks_like_series(path) is taken
    assert taken or list_path(path, "x", asked=False) is None


def test_dates_of_other_countries():
    assert str(parse_times(["31/01/2020 10:00", "01/02/2020 10:00"])[1]) == "2020-02-01T10:00:00.000000"
    assert str(parse_times(["01/31/2020", "02/01/2020"])[1])[:10] == "2020-02-01"
    assert parse_times(["2020-01-01 00:00:00Z"])[0] == np.datetime64("2020-01-01")
    assert parse_times(["1", "2"]) is None and parse_times([]) is None and parse_times(["a-b"]) is None


def test_parquet_and_words_beside_numbers(tmp_path):
    times = pa.array((np.datetime64("2020-01-01") + np.arange(100)).astype("datetime64[ms]"))
    table = pa.table({"when": times, "a": np.arange(100.0), "b": np.arange(100)})
    pq.write_table(table, tmp_path / "x.parquet")
    data = open_source(tmp_path / "x.parquet", window=8, cache=False)
    assert data.images.shape[1:] == (2, 8) and data.spec.traits["names"] == ["a", "b"]
    pq.write_table(table.append_column("town", pa.array(["x"] * 100)), tmp_path / "y.parquet")
    assert not looks_like_series(tmp_path / "y.parquet")
    asked = open_source(tmp_path / "y.parquet", window=8, modality="series", cache=False)
    assert asked.images.shape[1] == 2 and any("town left out" in note for note in asked.notes)


def test_options_that_make_no_sense(tmp_path):
    path = write_long(tmp_path / "x.csv")
    for option, words in (({"window": 61}, "does not fit into the training part of 60"),
                          ({"window": 2.5}, "window must be int"), ({"hop": -1}, "whole number"),
                          ({"windw": 3}, "windw"), ({"norm": "z"}, "no norm 'z'"), ({"size": 32}, "no size in pixels")):
        with pytest.raises((UsageError, DataError), match=words):
            open_source(path, cache=False, **option)
    with pytest.raises(DataError, match="no split 'dev'"):
        open_source(f"{path}:dev", cache=False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="holds no series"):
        open_source(tmp_path / "folder", modality="series")
    with pytest.raises(DataError, match="no long series"):
        open_long(tmp_path / "folder")


def test_arrays_with_labels_gaps_and_unequal_lengths(tmp_path):
    series = np.arange(2 * 2 * 6, dtype=float).reshape(2, 2, 6).repeat(2, 0)
    series[1, :, 3:] = NAN  # ends after three steps
    series[2, 0, 2] = NAN
    series[3, 1] = NAN  # a channel without any value
    np.savez(tmp_path / "x.npz", series=series, label=np.array(["up", "down", "up", "down"]), group=np.arange(4))
    data = open_source(tmp_path / "x.npz", cache=False, length=6)
    assert data.images.shape == (4, 2, 6) and data.class_names == ["down", "up"]
    assert data.labels.tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(data.images[1, 0], np.linspace(0, 2, 6))
    assert data.images[2, 0, 2] == series[2, 0, 1] + 1
    np.testing.assert_allclose(data.images[3, 1], np.nanmean(series[:, 1]))
    assert data.groups == ["0", "1", "2", "3"] and "1 series end before the last step" in " ".join(data.notes)
    assert "the series have 3 to 6" in " ".join(data.notes)
    padded = open_source(tmp_path / "x.npz", cache=False, length=6, fit="pad")
    np.testing.assert_array_equal(padded.images[1, 0], [0, 1, 2, 2, 2, 2])
    again = open_source(tmp_path / "x.npz", like=padded.spec, cache=False)
    np.testing.assert_array_equal(again.images, padded.images)


def test_a_sample_that_is_all_missing_is_skipped(tmp_path):
    series = np.ones((3, 8))
    series[1] = NAN
    np.savez(tmp_path / "x.npz", series=series)
    data = open_source(tmp_path / "x.npz", cache=False, max_skipped=0.5)
    assert data.images.shape == (2, 1, 8) and [(s.id, s.reason) for s in data.skipped] == [
        ("0000001", "has all values missing")]
    np.save(tmp_path / "x.npy", np.ones((2, 3, 8)))
    assert open_source(tmp_path / "x.npy", modality="series", cache=False).images.shape == (2, 3, 8)
    assert list_path(tmp_path / "x.npy", "x", asked=False) is None


def test_lengths_are_brought_to_whole_patches(tmp_path):
    np.savez(tmp_path / "x.npz", series=np.random.default_rng(0).standard_normal((4, 151)))
    data = open_source(tmp_path / "x.npz", cache=False)
    assert data.images.shape[2] == 152 and any("152 steps (rule: the median length, up to a multiple of 4" in n
                                               for n in data.notes)


def test_damaged_archives(tmp_path):
    np.savez(tmp_path / "x.npz", other=np.ones(3))
    with pytest.raises(DataError, match="no array 'series'; it has: other"):
        open_source(tmp_path / "x.npz", modality="series")
    assert list_path(tmp_path / "x.npz", "x", asked=False) is None
    np.savez(tmp_path / "y.npz", series=np.ones((3, 4)), label=np.ones(2, int))
    with pytest.raises(DataError, match="3 series but 2 entries in 'label'"):
        open_source(tmp_path / "y.npz")
    np.savez(tmp_path / "z.npz", series=np.array([None, [1]], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        open_source(tmp_path / "z.npz", modality="series")
    np.savez(tmp_path / "w.npz", series=np.ones(3))
    with pytest.raises(DataError, match=r"\(3,\)"):
        open_source(tmp_path / "w.npz")


TS = """#comment
@problemName Toy
@timeStamps false
@classLabel true a b
@data
1,2,3,4:5,6,7,8:a
1,?,3:4,5,6:b
1,2,x:4,5,6:b
1,2,3:a
"""


def test_ts_files_of_the_archives(tmp_path):
    (tmp_path / "Toy_TRAIN.ts").write_text(TS)
    found = read_ts(tmp_path / "Toy_TRAIN.ts", "x")
    assert found.labels == ["a", "b", None, "a"] and found.lines == [6, 7, 8, 9]
    assert found.series[2] == b"holds a cell that is no number ('x')"
    data = open_source(tmp_path / "Toy_TRAIN.ts", max_skipped=0.9, cache=False, length=4)
    assert data.images.shape == (2, 2, 4) and data.class_names == ["a", "b"]
    np.testing.assert_allclose(data.images[1, 0], np.interp(np.linspace(0, 2, 4), range(3), [1, 2, 3]))
    assert {s.id: s.reason for s in data.skipped} == {
        "line-000008": "holds a cell that is no number ('x')",
        "line-000009": "has 1 channels, the others have 2"}
    (tmp_path / "Toy_TEST.ts").write_text(TS.replace("1,2,x:4,5,6:b\n1,2,3:a\n", ""))
    both = open_source(tmp_path, max_skipped=0.9, cache=False)
    assert both.split == ["train", "train", "test", "test"]
    assert len(open_source(f"{tmp_path}:test", cache=False)) == 2


def test_ts_files_that_cannot_be_used(tmp_path):
    path = tmp_path / "x.ts"
    for text, words in ((TS.replace("@data", ""), "no line @data"), (TS.split("1,2,3,4")[0], "no series after @data"),
                        (TS.replace("timeStamps false", "timeStamps true"), "time with every value")):
        path.write_text(text)
        with pytest.raises(DataError, match=words):
            open_source(path)


def test_ts_files_with_a_number_to_be_predicted(tmp_path):
    numbers = TS.replace("@classLabel true a b", "@targetLabel true").replace(":a", ":0.5").replace(":b", ":1")
    path = tmp_path / "Toy_TRAIN.ts"
    path.write_text(numbers)
    data = open_source(path, max_skipped=0.9, cache=False)  # the third line is damaged, the fourth lacks a channel
    assert data.labels is None and data.targets.tolist() == [0.5, 1.0] and len(data.skipped) == 2
    classes = open_source(path, max_skipped=0.9, cache=False, task="classes")
    assert classes.targets is None and classes.class_names == ["0.5", "1"]
    path.write_text(numbers.replace("3:4,5,6:1\n1,2,x", "3:4,5,6:?\n1,2,x"))
    with pytest.raises(DataError, match="line-000007"):
        open_source(path, max_skipped=0.9, cache=False)
    (tmp_path / "Toy_TEST.ts").write_text(TS)
    with pytest.raises(DataError, match="classes in another"):
        open_source(tmp_path, max_skipped=0.9, cache=False)


def test_a_csv_with_a_series_a_row_only_when_asked(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("t0,t1,t2,t3,label,split,town\n1,2,3,4,up,train,x\n4,3,2,1,down,test,y\n1,1,,,up,train,z\n")
    assert list_path(path, "x", asked=False) is None
    data = open_source(path, modality="series", cache=False, length=4, fit="pad")
    assert data.images[:, 0].tolist() == [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 1, 1]]
    assert data.class_names == ["down", "up"] and data.labels.tolist() == [1, 0, 1]
    assert data.split == ["train", "test", "train"] and any("town left out" in note for note in data.notes)
    ucr = tmp_path / "Toy_TRAIN.tsv"
    ucr.write_text("1\t0.5\t1.5\t2.5\n-1\t3\t2\t1\n")
    bare = open_source(ucr, modality="series", cache=False)
    assert bare.images[:, 0].tolist() == [[0.5, 1.5, 2.5], [3, 2, 1]] and bare.class_names == ["-1", "1"]


def test_the_generated_source():
    train, test = open_source("waves:train"), open_source("waves:test")
    assert (len(train), len(test)) == (1400, 600) and train.images.shape[1:] == (2, 128)
    assert not set(train.ids) & set(test.ids) and len(train.class_names) == 6
    assert np.bincount(train.labels).min() > 200
    np.testing.assert_array_equal(open_source("waves:test").images[:5], test.images[:5])
    like = open_source("waves:test", like=train.spec)
    assert like.spec.extent == (128,) and like.spec.traits == train.spec.traits
