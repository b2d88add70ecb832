from __future__ import annotations

import json

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.data import open_source
from osteon.verbs._model import extract, load_trained
from osteon.verbs.embed import embed


def test_rows_ids_and_labels_are_in_the_order_of_the_source(tmp_path, trained, archive, digits):
    source = archive("some.npz", 100, 130)
    out = embed(trained, source, out=tmp_path / "features", batch_size=7)
    features = np.load(out / "features.npy", mmap_mode="r")
    dataset = open_source(source)
    assert isinstance(features, np.memmap) and features.shape[0] == 30 and features.dtype == np.float32
    assert [json.loads(line) for line in (out / "ids.txt").read_text().splitlines()] == dataset.ids
    assert np.load(out / "labels.npy").tolist() == digits.labels[100:130].tolist()
    model = load_trained(trained)
    for row in (0, 17, 29):  # each against the features of that image alone
        alone = extract(model.backbone, digits.subset([100 + row]), model.spec)[0]
        assert np.allclose(features[row], alone, atol=1e-5)
    assert not np.allclose(features[0], features[17], atol=1e-3)
    info = json.loads((out / "info.json").read_text())
    assert (info["samples"], info["width"], info["fingerprint"]) == (30, features.shape[1], dataset.fingerprint)
    assert info["class_names"] == dataset.class_names


def test_the_batch_size_changes_nothing(tmp_path, trained, archive):
    source = archive("some.npz", 0, 20)
    one, all_ = (np.load(embed(trained, source, out=tmp_path / str(b), batch_size=b) / "features.npy") for b in (3, 64))
    assert np.allclose(one, all_, atol=1e-5)


def test_unlabelled_data_and_unusual_names(tmp_path, trained, digits):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, row in (("ä b.png", 0), ("line\nbreak.png", 1)):
        Image.fromarray(digits.images[row, 0]).save(folder / name)
    out = embed(trained, folder, out=tmp_path / "features")
    ids = [json.loads(line) for line in (out / "ids.txt").read_text(encoding="utf-8").splitlines()]
    assert len(ids) == 2 and any("ä b" in i for i in ids) and any("line\nbreak" in i for i in ids)
    assert not (out / "labels.npy").exists()


def test_data_of_another_kind_are_converted_by_rule_or_refused(tmp_path, trained, archive):
    grey = archive("grey.npz", 0, 6)
    colour = archive("rgb.npz", 0, 6, change=lambda x: np.repeat(x, 3, axis=3))
    wide = archive("wide.npz", 0, 6, change=lambda x: np.repeat(x, 4, axis=3))
    a, b = (np.load(embed(trained, s, out=tmp_path / s.stem) / "features.npy") for s in (grey, colour))
    assert np.allclose(a, b, atol=0.02)  # three equal channels are the grey picture
    with pytest.raises(DataError, match="4 channels, the model was trained on 1"):
        embed(trained, wide, out=tmp_path / "wide")
    with pytest.raises(DataError, match="No image has values of type uint8"):
        embed(trained, archive("float.npz", 0, 6, change=lambda x: x / np.float32(255)), out=tmp_path / "f")
    assert not (tmp_path / "wide").exists()
