from __future__ import annotations

import pytest

from osteon.core.errors import DataError
from osteon.data.listing import Listing, digest, encode_labels, unique_ids


def encode(raw, names=None):
    return encode_labels(raw, names, [f"i{k}" for k in range(len(raw))], "here")


def test_ids_become_unique_without_touching_those_that_are():
    assert unique_ids(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
    assert unique_ids(["a#2", "a", "a"]) == ["a#2", "a", "a#3"]


def test_digest_keeps_parts_apart():
    assert digest("ab", "c") != digest("a", "bc") and digest("ab", "c") == digest("ab", "c")


def test_no_labels():
    assert encode_labels(None, None, [], "here") == (None, [], [])
    assert encode([None, None]) == (None, [], [])


def test_names_are_sorted_numbers_by_value():
    labels, names, _ = encode(["b", "a", "b"])
    assert names == ["a", "b"] and labels.tolist() == [1, 0, 1]
    labels, names, _ = encode([10, 9])
    assert names == ["9", "10"] and labels.tolist() == [1, 0]
    labels, names, _ = encode([1, 1], ["cat", "dog"])
    assert names == ["cat", "dog"] and labels.tolist() == [1, 1]


def test_counts_are_noted():
    assert encode(["a", "a", "b"])[2] == ["labels: 2 classes, 1 to 2 images a class"]
    assert "one class ('a')" in encode(["a", "a"])[2][0]
    assert "1.50 an image on average; 0 images have none" in encode([["a"], ["a", "b"]])[2][0]


@pytest.mark.parametrize("bad", [-1, 2])
def test_numbers_without_a_name(bad):
    with pytest.raises(DataError, match="has no name"):
        encode([0, bad], ["cat", "dog"])


def test_take_follows_everything():
    listing = Listing("s", ["a", "b", "c"], lambda i: bytes([i]), "", labels=[1, 2, 3], groups=["x", "y", "z"],
                      split=["p", "q", "q"])
    part = listing.only("q").take([1])
    assert part.ids == ["c"] and part.payload(0) == b"\x02" and part.labels == [3] and part.groups == ["z"]
