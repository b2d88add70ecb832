"""From text to numbers of a vocabulary and back: by character, by word, or by pairs of bytes that occur together.

Byte pairs: Sennrich et al. 2016, arXiv:1508.07909, section 3.2; on bytes: Radford et al. 2019 (GPT-2), section 2.2.
Every vocabulary starts with the same three members, :data:`SPECIAL`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, MissingExtra, UsageError, nearest
from osteon.parts.words import MASK, PAD, SPECIAL, UNK

#: Ways to cut a text, beside ``hf:NAME``.
KINDS = ("bpe", "char", "word")
_WORD = re.compile(r"\w+|[^\w\s]")


class Tokenizer:
    """A vocabulary with its way of cutting.

    Args:
        kind: one of :data:`KINDS`, or ``hf``.
        tokens: members as they are written, the special ones first.
        model: of ``bpe`` and ``hf`` what the library ``tokenizers`` stores; its numbers are ours for ``bpe``, and 3
            less than ours for ``hf``.
    """

    def __init__(self, kind: str, tokens: Sequence[str], model: str = "") -> None:
        self.kind, self.tokens, self.model = kind, list(tokens), model
        self.number = {token: i for i, token in enumerate(self.tokens)}
        self._points = np.array([ord(t) for t in self.tokens[3:]], np.uint32) if kind == "char" else np.empty(0)
        self._engine: Any = None

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> np.ndarray:
        """Numbers of the tokens of a text, (N,) int32; what is not in the vocabulary is :data:`UNK`."""
        if self.kind == "char":
            points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
            order = np.argsort(self._points)
            place = np.searchsorted(self._points, points, sorter=order).clip(max=max(0, len(order) - 1))
            found = order[place] if len(order) else place
            known = self._points[found] == points if len(order) else np.zeros(len(points), bool)
            return np.where(known, found + len(SPECIAL), UNK).astype(np.int32)
        if self.kind == "word":
            return np.array([self.number.get(w, UNK) for w in _WORD.findall(text)], np.int32)
        if self._engine is None:
            self._engine = _engine(self.model)
        shift = np.int32(len(SPECIAL) if self.kind == "hf" else 0)
        parts = self._engine.encode_batch_fast(text.splitlines(keepends=True), add_special_tokens=False)
        return np.concatenate([np.empty(0, np.int32), *(np.array(part.ids, np.int32) for part in parts)]) + shift

    def pieces(self) -> list[str]:
        """Every member as a reader sees it; special ones are empty, but for the unknown, which is a box."""
        marks = ["", "", "\u25a1"]
        if self.kind == "char":
            return marks + self.tokens[3:]
        if self.kind == "word":
            return marks + [t if re.fullmatch(r"[^\w\s]", t) else f" {t}" for t in self.tokens[3:]]
        if self.in_bytes:
            return marks + [_from_letters(t) for t in self.tokens[3:]]
        return marks + [t[2:] if t.startswith("##") else t.replace("\u2581", " ") for t in self.tokens[3:]]

    def lengths(self) -> np.ndarray:
        """Bytes of every member in UTF-8, (V,) int64; special ones are 0, but for the unknown, which is taken for 1."""
        if self.in_bytes:
            letters = _letters()
            sizes = [sum(1 if c in letters else len(c.encode("utf-8", "replace")) for c in t) for t in self.tokens[3:]]
        else:
            sizes = [len(p.encode("utf-8", "replace")) for p in self.pieces()[3:]]
        return np.array([0, 0, 1, *sizes], np.int64)

    @property
    def in_bytes(self) -> bool:
        """Whether members are made of bytes, so that a letter may be spread over several."""
        return self.kind == "bpe" or any("\u0120" in token for token in self.tokens)

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of some tokens, as far as it can be told."""
        held = [int(i) for i in numbers if 0 <= int(i) < len(self)]
        if self.in_bytes:
            written = ("\u25a1" if i == UNK else self.tokens[i] for i in held if i not in (PAD, MASK))
            return _from_letters("".join(written))
        pieces = self.pieces()
        return "".join(pieces[i] for i in held)

    def dump(self) -> str:
        """Everything as a JSON string."""
        values = {"kind": self.kind} | ({"model": self.model} if self.model else {"tokens": self.tokens})
        return json.dumps(values, ensure_ascii=False, sort_keys=True)


@lru_cache(maxsize=8)
def load_tokenizer(text: str) -> Tokenizer:
    """A tokenizer from what :meth:`Tokenizer.dump` wrote; no library is needed before something is to be cut."""
    values = json.loads(text)
    if "model" not in values:
        return Tokenizer(values["kind"], values["tokens"])
    return Tokenizer(values["kind"], _members(values["model"], values["kind"] == "hf"), values["model"])


def make_tokenizer(kind: str, texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokenizer from the texts it is to cut.

    Args:
        kind: ``char``, ``word`` or ``bpe``, whose vocabulary is learned; or ``hf:NAME``, whose vocabulary comes from
            the Hub (``hf:NAME@REVISION``: of a branch, tag or commit) or a local ``tokenizer.json``.
        texts: what it learns from.
        vocabulary: most members, special ones included.

    Raises:
        MissingExtra: byte pairs without the library ``tokenizers``.
    """
    if kind.startswith("hf:"):
        return _from_hub(kind[3:])
    if kind not in KINDS:
        raise UsageError(f"There is no tokenizer '{kind}'.{nearest(kind, KINDS)}", where="tokenizer",
                         fix=f"Set {', '.join(KINDS)}, or hf:NAME.")
    if vocabulary < len(SPECIAL) + 1:
        raise UsageError(f"A vocabulary of {vocabulary} has no room beside {', '.join(SPECIAL)}.", where="vocabulary",
                         fix="Set 100 or more.")
    if kind == "bpe":
        return _learn_pairs(texts, vocabulary)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if kind == "char" else _WORD.findall(text))
    kept = sorted(counts, key=lambda token: (-counts[token], token))[:vocabulary - len(SPECIAL)]
    return Tokenizer(kind, [*SPECIAL, *kept])


#: Where words that no language has are cut while pairs are learned: time grows with the square of their length.
_LONG = re.compile(r"(?<=\S)(\S{500})(?=\S{500})")


def _library(why: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "text", why=f"{why} (tokenizer=char needs no package)") from error
    return tokenizers


def _learn_pairs(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte pairs of the texts; bytes that do not occur in them are unknown."""
    library = _library("Cutting text into byte pairs")
    engine = library.Tokenizer(library.models.BPE(unk_token=SPECIAL[UNK]))
    engine.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False,
                                          min_frequency=2, limit_alphabet=vocabulary - len(SPECIAL))
    engine.train_from_iterator((part for text in texts for line in text.splitlines(keepends=True)
                                for part in _LONG.split(line) if part), trainer)
    model = engine.to_str()
    return Tokenizer("bpe", _members(model, False), model)


def _from_hub(name: str) -> Tokenizer:
    library = _library("A tokenizer of the Hub")
    path = Path(name).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        repository, _, revision = name.partition("@")
        engine = (library.Tokenizer.from_file(str(path)) if path.exists() else
                  library.Tokenizer.from_pretrained(repository, revision=revision or "main"))
        engine.no_truncation()
        engine.no_padding()
        model = engine.to_str()
        return Tokenizer("hf", _members(model, True), model)
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"The tokenizer cannot be loaded: {str(error).strip() or type(error).__name__}",
                        where=f"hf:{name}",
                        fix="Name a model of the Hub with a tokenizer.json, or such a file.") from error


def _engine(model: str) -> Any:
    engine = _library("Cutting text as the model was trained").Tokenizer.from_str(model)
    engine.encode_special_tokens = True  # "<mask>" in somebody's text is six characters, not the mask
    return engine


def _members(model: str, foreign: bool) -> list[str]:
    """Members by number from what the library stores, with ours before them if they are not its own."""
    stored = json.loads(model)
    vocab = stored["model"]["vocab"]
    pairs = list(vocab.items()) if isinstance(vocab, dict) else [(t, i) for i, (t, _) in enumerate(vocab)]
    pairs += [(t["content"], t["id"]) for t in stored.get("added_tokens", ())]
    found = [""] * (1 + max(i for _, i in pairs))
    for token, i in pairs:
        found[i] = token
    return [*SPECIAL, *found] if foreign else found


@lru_cache(maxsize=1)
def _letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies, and the byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _from_letters(text: str) -> str:
    """The text that letters of bytes spell; other letters stay."""
    letters = _letters()
    spelt = b"".join(bytes([letters[c]]) if c in letters else c.encode("utf-8", "replace") for c in text)
    return spelt.decode("utf-8", "replace")
