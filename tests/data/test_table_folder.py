"""A folder of tables with different columns is one source; options concern the tables that have the columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data.mixture import open_mixed
from osteon.data.table_folder import options_of, tables_of
from osteon.parts.cells import NOTHING


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "tables"
    place.mkdir()
    (place / "b.csv").write_text("age,height,price\n" + "".join(f"{i}.5,{2 * i}.5,{i % 3}\n" for i in range(6)))
    (place / "a.tsv").write_text("width\tprice\n" + "".join(f"{100 + i}.5\t{i}\n" for i in range(4)))
    (place / "c.csv").write_text("age,town,label,split\n" + "".join(
        f"{i}.5,t{i % 2},{i % 2},{'train' if i else 'test'}\n" for i in range(5)))
    (place / "notes.md").write_text("no table")
    return place


def test_which_tables_there_are(folder):
    names = [Path(file).name for file in tables_of(str(folder), "cells")]
    assert names == ["a.tsv", "b.csv", "c.csv"]
    assert tables_of(str(folder), "") == [] and tables_of(str(folder / "b.csv"), "cells") == []
    assert [file.rsplit(":", 1)[1] for file in tables_of(f"{folder}:train", "cells")] == ["train"] * 3
    (folder / "test").mkdir()
    assert tables_of(f"{folder}:test", "cells") == []


def test_a_folder_of_tables_that_is_not_read_by_names_is_refused_with_the_way_to_do_it(folder):
    with pytest.raises(DataError, match="no image") as error:
        open_source(folder, cache=False)
    assert "3 csv and tsv files" in error.value.fix and "names=cells" in error.value.fix


def test_options_go_to_the_tables_that_have_the_columns(folder):
    files = tables_of(str(folder), "cells")
    found = options_of(files, {"names": "cells", "drop": "price,town", "columns": "age:categorical", "label": "height",
                               "group": "none"}, "x")
    assert found == [{"names": "cells", "group": "none", "drop": ["price"]},
                     {"names": "cells", "group": "none", "label": "height", "drop": ["price"],
                      "columns": {"age": "categorical"}},
                     {"names": "cells", "group": "none", "drop": ["town"], "columns": {"age": "categorical"}}]
    for option in ({"drop": "prize"}, {"label": "prize"}, {"columns": "prize:numeric"}):
        with pytest.raises(UsageError, match="No table of the folder has a column 'prize'.*price"):
            options_of(files, option, "x")


def test_every_row_keeps_the_columns_and_the_statistics_of_its_table(folder):
    data = open_mixed(folder, names="cells", drop="price", cache=False)
    assert len(data) == 4 + 6 + 5 and data.spec.extent == (2,) and data.source == str(folder)
    kinds = data.images[:][:, 2]
    assert (kinds[:4, 1] == NOTHING).all() and (kinds[4:] < NOTHING).all()
    for rows in (range(4), range(4, 10), range(10, 15)):  # numbers of every table have mean 0 and deviation 1
        values = data.images[list(rows)][:, 0, 0]
        np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-3)
    assert [c["name"] for columns in (data.spec.traits["columns"], *data.spec.traits["tables"]) for c in columns] == [
        "width", "age", "height", "age", "town"]
    assert len(set(data.ids)) == 15 and data.labels is None and data.mixture is None
    assert any("3 files of the folder, 15 rows" in note for note in data.notes)
    few = open_mixed(folder, names="cells", drop="price", cache=False, limit=7)
    assert len(few) == 7 and set(few.ids) < set(data.ids)


def test_a_folder_mixes_with_other_tables(folder, tmp_path):
    (tmp_path / "d.csv").write_text("mass,sex\n" + "".join(f"{i},{'mf'[i % 2]}\n" for i in range(8)))
    data = open_mixed(folder, names="cells", mix={str(tmp_path / "d.csv"): 0.5}, cache=False)
    assert len(data) == 23 and len(data.spec.traits["tables"]) == 3
    assert data.mixture is not None and data.mixture.sizes == (15, 8)
