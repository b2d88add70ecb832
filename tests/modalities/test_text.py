"""Text: numbers of tokens by hand, controls against loops, and what a picture shows."""

from __future__ import annotations

import builtins
import json
import math
import types

import numpy as np
import pytest

from osteon.core.errors import DataError, MissingExtra, UsageError
from osteon.modalities import Unreadable, _tokens, find
from osteon.modalities import text as m
from osteon.parts.types import DataSpec

WORDS = m.Tokenizer("word", [*m.SPECIAL, "cat", "dog", "."])


def spec(tokenizer: m.Tokenizer = WORDS, window: int = 6) -> DataSpec:
    return DataSpec("text", 1, window, (0.0,), (1.0,), 1.0, shape=(window,),
                    traits={"tokenizer": tokenizer.dump(), "window": window})


def rows(*texts: list[int], window: int = 6) -> np.ndarray:
    return np.array([[t + [0] * (window - len(t))] for t in texts], np.int32)


def test_characters_are_numbered_by_frequency_after_the_special_ones():
    made = m.make_tokenizer("char", ["banana", "b"], 100)
    assert made.tokens == ["<pad>", "<mask>", "<unk>", "a", "b", "n"]  # a 3 times, b and n twice
    assert made.encode("nab?").tolist() == [5, 3, 4, 2] and made.encode("").tolist() == []
    assert made.encode("b\U0001f600").tolist() == [4, 2]
    assert m.make_tokenizer("char", ["banana"], 4).tokens[3:] == ["a"]


def test_words_and_signs():
    made = m.make_tokenizer("word", ["The cat, the dog."], 100)
    assert sorted(made.tokens[3:]) == [",", ".", "The", "cat", "dog", "the"]
    assert made.decode(made.encode("The dog, the cat.")) == " The dog, the cat."
    assert made.encode("A cat").tolist() == [m.UNK, made.number["cat"]]


def test_byte_pairs_join_what_occurs_most_and_give_the_text_back():
    pytest.importorskip("tokenizers")
    made = m.make_tokenizer("bpe", ["aaab aaab aaab xy"], 1000)
    assert made.tokens[:3] == list(m.SPECIAL) and "aa" in made.tokens and len(made) < 20
    assert made.decode(made.encode("aaab  xy")) == "aaab  xy" and made.encode("").tolist() == []
    assert made.decode(made.encode("aaab\nxy")) == "aaab\u25a1xy"  # no line ended in what it learned from
    umlaut = m.make_tokenizer("bpe", ["für Öl für"], 1000)
    assert umlaut.decode(umlaut.encode("für Öl")) == "für Öl"
    assert (made.encode("Ω") == m.UNK).all() and len(made.encode("Ω")) == 2  # its two bytes were never seen
    assert len(m.make_tokenizer("bpe", ["the cat sat on the mat " * 9], 20)) <= 20


def test_special_tokens_in_somebodys_text_are_plain_text():
    pytest.importorskip("tokenizers")
    made = m.make_tokenizer("bpe", ["say <mask> or <pad> twice <mask>"], 60)
    numbers = made.encode("<mask> <pad>")
    assert m.MASK not in numbers and m.PAD not in numbers and made.decode(numbers) == "<mask> <pad>"


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_tokenizer_survives_its_json(kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    text = "the cat and the dog. the end"
    made = m.make_tokenizer(kind, [text], 40)
    again = m.load_tokenizer(made.dump())
    assert again.tokens == made.tokens and again.dump() == made.dump() and json.loads(made.dump())["kind"] == kind
    assert again.encode(text + " \u00e9").tolist() == made.encode(text + " \u00e9").tolist()


def test_a_foreign_tokenizer_is_moved_behind_the_special_tokens(tmp_path):
    library = pytest.importorskip("tokenizers")
    engine = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    engine.pre_tokenizer = library.pre_tokenizers.Whitespace()
    engine.save(str(tmp_path / "tokenizer.json"))
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        made = m.make_tokenizer(f"hf:{name}", [], 1000)
        assert made.tokens == ["<pad>", "<mask>", "<unk>", "[UNK]", "cat", "dog"]
        assert made.encode("dog cat cow").tolist() == [5, 4, 3]
        assert m.load_tokenizer(made.dump()).encode("dog").tolist() == [5]
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded"):
        m.make_tokenizer(f"hf:{tmp_path / 'bad.json'}", [], 1000)


def test_without_the_library_characters_still_work(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"tokenizer=char.*osteon\[text\]"):
        m.make_tokenizer("bpe", ["abc"], 50)
    assert len(m.make_tokenizer("char", ["abc"], 50)) == 6


@pytest.mark.parametrize(("kind", "vocabulary"), [("chars", 100), ("char", 3)])
def test_what_makes_no_vocabulary(kind, vocabulary):
    with pytest.raises(UsageError, match="char|room"):
        m.make_tokenizer(kind, ["abc"], vocabulary)


def test_decoding_text(tmp_path):
    assert m.decode_text(b"\xef\xbb\xbfa\r\nb\rc") == "a\nb\nc"
    with pytest.raises(Unreadable, match="byte 0xe9 at offset 5, line 2"):
        m.decode_text(b"ab\ncd\xe9")
    with pytest.raises(Unreadable, match="not found"):
        m.decode_text(tmp_path / "none.txt")
    with pytest.raises(Unreadable, match="regular"):
        m.decode_text(tmp_path)
    with pytest.raises(Unreadable, match="array"):
        m.decode_text(np.zeros(3))


def test_tfidf_by_hand():
    train, test = rows([3, 3, 4], [4, 5]), rows([3, 5], [2])
    first, second = m.token_tfidf(train, test, spec())
    rare, common = math.log(3 / 2) + 1, 1.0  # of 2 texts, cat and '.' are in one, dog in both
    np.testing.assert_allclose(sorted(first[0][first[0] > 0]),
                               sorted(np.array([2 * rare, common]) / math.hypot(2 * rare, common)), rtol=1e-6)
    np.testing.assert_allclose(second[0][second[0] > 0], [math.sqrt(0.5)] * 2, rtol=1e-6)
    assert (second[1] == 0).sum() >= len(second[1]) - 1  # a text of unknown words only


def test_pairs_know_the_order_and_padding_makes_none():
    train, test = rows([3, 4], [4, 3]), rows([3, 4], [3])
    first, second = m.pair_tfidf(train, test, spec())
    assert first.shape == (2, m.COLUMNS) and (np.count_nonzero(first, axis=1) == 1).all()
    assert not np.array_equal(first[0], first[1]) and np.array_equal(first[0], second[0]) and not second[1].any()
    assert np.array_equal(*m.token_tfidf(train, train[::-1], spec()))  # single tokens do not


def test_statistics_by_hand():
    made = m.Tokenizer("char", [*m.SPECIAL, "a", "B", "1", " ", "."])
    row = m.statistics(rows([3, 3, 4, 5, 6, 7], [2], []), spec(made))
    entropy = -(1 / 3) * math.log(1 / 3) - 4 / 6 * math.log(1 / 6)
    np.testing.assert_allclose(row[0], [6, 5 / 6, 0, entropy, 1, 3 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 6], rtol=1e-6)
    assert row[1][2] == 1 and not row[2].any()
    first, second = m.CONTROLS["text statistics"](rows([3], [4, 5]), rows([3]), spec(made))
    np.testing.assert_allclose(first.mean(0), 0, atol=1e-6)
    np.testing.assert_array_equal(first[0], second[0])


def test_pictures_show_tokens_blocks_and_differences():
    x = rows([3, 4, 5], [3, 3, 3]).astype(np.float32)
    plain = m.picture(x, spec())
    assert plain.shape == (2, 160, 256, 3) and plain.dtype == np.uint8 and not np.array_equal(plain[0], plain[1])
    hidden = x.copy()
    hidden[0, 0, 1] = -1
    assert (m.picture(hidden, spec())[0] == 150).all(-1).sum() > 50 and not (plain == 150).all(-1).any()
    changed = x.copy()
    changed[0, 0, 1] = 3
    drawn = m.picture(changed, spec(), x).astype(int)
    red = drawn[..., 0] > drawn[..., 1] + 50
    assert red[0].any() and not red[1].any()
    blank = m.picture(np.zeros_like(x), spec())
    assert (blank == 255).all()


def test_long_texts_and_strange_letters_are_drawn_without_trouble():
    made = m.Tokenizer("char", [*m.SPECIAL, "\n", "\x07", "\u4e2d", "W", "\U0001f600"])
    x = np.random.default_rng(0).integers(2, 8, (2, 1, 2000)).astype(np.float32)
    assert m.picture(x, spec(made, 2000)).shape == (2, 160, 256, 3)
    assert m.picture(np.full((1, 1, 4), 99.0), spec(made)).std() > 0  # beyond the vocabulary: the box


def test_the_backbone_is_told_the_size_of_the_vocabulary():
    assert find("text").backbone_options(spec()) == {"vocabulary": 6}


@pytest.mark.parametrize(("name", "asked"), [("owner/model@v1", ("owner/model", "v1")),
                                             ("owner/model", ("owner/model", "main"))])
def test_a_vocabulary_of_the_hub_is_taken_at_a_revision(monkeypatch, name, asked):
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    seen = []

    class Door:
        from_pretrained = staticmethod(lambda where, revision: (seen.append((where, revision)), made)[1])

    fake = types.SimpleNamespace(Tokenizer=Door)
    monkeypatch.setattr(_tokens, "_library", lambda why: fake)
    assert "a" in _tokens._from_hub(name).tokens and seen == [asked]
