from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.data import open_source
from osteon.data.ids import read_ids, split_ids, write_ids


def test_what_is_a_list_of_ids(tmp_path: Path) -> None:
    assert split_ids("photos@ids.csv") == ("photos", Path("ids.csv"))
    assert split_ids("digits:train@a/b.txt") == ("digits:train", Path("a/b.txt"))
    assert split_ids("a@b.csv@c.csv") == ("a@b.csv", Path("c.csv"))
    for whole in ("photos", "me@home", "hf:name@main", "@ids.csv"):
        assert split_ids(whole) == (whole, None)
    odd = tmp_path / "x@y.csv"
    odd.write_text("path\n")
    assert split_ids(str(odd)) == (str(odd), None)  # a path that exists is never cut


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    ids = ["b", "a, with \"comma\"", "ü/1.png", "2"]
    write_ids(tmp_path / "i.csv", ids, [0.5, 1 / 3, -2, 1e9])
    assert read_ids(tmp_path / "i.csv") == ids
    assert (tmp_path / "i.csv").read_text().splitlines()[:3] == ["id,score", "b,0.5", '"a, with ""comma""",0.33333333']
    write_ids(tmp_path / "j.csv", ids)
    assert read_ids(tmp_path / "j.csv") == ids
    (tmp_path / "k.txt").write_text("x\n\ny\n")
    assert read_ids(tmp_path / "k.txt") == ["x", "y"]
    (tmp_path / "m.csv").write_text("\ufeffscore,id\n1,x\n")
    assert read_ids(tmp_path / "m.csv") == ["x"]


@pytest.mark.parametrize(("text", "what"), [("id\n", "is empty"), ("name\na\n", "no column 'id'"),
                                            ("", "no column 'id'"), ("id\na\nb\na\n", "'a' occurs twice")])
def test_broken_lists(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "i.csv").write_text(text)
    with pytest.raises(DataError, match=what):
        open_source(f"digits@{tmp_path / 'i.csv'}")


def test_a_source_is_restricted_in_its_own_order(tmp_path: Path) -> None:
    whole = open_source("digits:train")
    rows = [30, 2, 17]
    write_ids(tmp_path / "i.csv", [whole.ids[i] for i in rows])
    source = f"digits:train@{tmp_path / 'i.csv'}"
    part = open_source(source)
    assert part.ids == [whole.ids[i] for i in sorted(rows)] and part.source == source
    assert np.array_equal(part.images, whole.images[sorted(rows)])
    assert np.array_equal(part.labels, whole.labels[sorted(rows)]) and part.class_names == whole.class_names
    assert part.fingerprint != whole.fingerprint
    assert any("3 of 1,258 samples, as listed" in n for n in part.notes)
    write_ids(tmp_path / "twice.csv", [whole.ids[17]])
    assert open_source(f"{source}@{tmp_path / 'twice.csv'}").ids == [whole.ids[17]]


def test_unknown_ids_and_missing_lists(tmp_path: Path) -> None:
    whole = open_source("digits:train")
    write_ids(tmp_path / "i.csv", [whole.ids[0], whole.ids[1] + "x"])
    with pytest.raises(DataError, match="1 of 2 ids do not occur") as error:
        open_source(f"digits:train@{tmp_path / 'i.csv'}")
    assert whole.ids[1] + "x" in error.value.what and "Did you mean" in error.value.fix
    with pytest.raises(DataError, match="cannot be read"):
        open_source(f"digits@{tmp_path / 'none.csv'}")


def test_folders_are_restricted_too(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(6):
        (tmp_path / "p" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / "p" / "ab"[i % 2] / f"{i}.png")
    whole = open_source(tmp_path / "p", cache=tmp_path / "c")
    write_ids(tmp_path / "i.csv", whole.ids[::2])
    part = open_source(f"{tmp_path / 'p'}@{tmp_path / 'i.csv'}", cache=tmp_path / "c")
    assert part.ids == whole.ids[::2] and np.array_equal(part.images, whole.images[::2])
