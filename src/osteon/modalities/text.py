"""Text: from UTF-8 to numbers of a vocabulary, what costs no training to know of them, and how they are shown.

Shape letters: B batch, N samples, T tokens of a window, V members of the vocabulary. A sample is (1, T) int32; 0 is
``<pad>``, 1 ``<mask>``, 2 ``<unk>`` in every vocabulary, and -1 in a picture is a token that is hidden.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from osteon.modalities._base import Control, Payload, Unreadable
from osteon.modalities._tokens import Tokenizer, load_tokenizer, make_tokenizer
from osteon.parts.types import DataSpec
from osteon.parts.words import MASK, PAD, SPECIAL, UNK

__all__ = ["CONTROLS", "MASK", "PAD", "SAMPLES", "SPECIAL", "UNK", "Tokenizer", "backbone_options", "decode_text",
           "load_tokenizer", "make_tokenizer", "picture"]

#: Files with these endings are taken for texts.
SUFFIXES = frozenset((".txt",))
#: What several samples are called.
SAMPLES = "texts"
#: How a text becomes an array; printed.
RULES = ("UTF-8, line ends are made \\n; tokens by one vocabulary; short samples are followed by <pad>; what the "
         "vocabulary lacks is <unk>")
#: Longest file that is read, in bytes: a text is held in memory as a whole.
MAX_BYTES = 2**30
#: Columns of the controls that count tokens or pairs of them.
COLUMNS = 2048


def decode_text(payload: Payload) -> str:
    """A UTF-8 text, with or without a byte order mark, line ends made ``\\n``. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        raise Unreadable("is an array, not a text")
    try:
        if not isinstance(payload, bytes):
            if not payload.is_file():  # reading a pipe would wait for ever
                raise Unreadable("is not a regular file" if payload.exists() else "file not found")
            if payload.stat().st_size > MAX_BYTES:
                raise Unreadable(f"has {payload.stat().st_size / 2**30:.1f} GiB, more than the limit of "
                                 f"{MAX_BYTES / 2**30:.0f}; cut it into parts")
            payload = payload.read_bytes()
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = error.object[:error.start]
        raise Unreadable(f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}, line "
                         f"{before.count(10) + 1})") from error
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def counts_of(samples: np.ndarray, numbers: np.ndarray, columns: int) -> np.ndarray:
    """How often each column occurs in each sample: (N, 1, T) samples, (N, T') columns or -1 -> (N, columns)."""
    rows, places = np.nonzero(numbers >= 0)
    flat = np.bincount(rows * columns + numbers[rows, places], minlength=len(samples) * columns)
    return flat.reshape(len(samples), columns).astype(np.float32)


def token_tfidf(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Bag of tokens: counts times the logarithm of rarity in the training part, rows of length 1.

    (N, 1, T), (M, 1, T) -> (N, F), (M, F); F is V, at most the :data:`COLUMNS` commonest tokens of the training part.
    """
    common = np.bincount(train[train != PAD].astype(np.int64), minlength=len(_tokenizer(spec)))
    kept = np.argsort(-common, kind="stable")[:COLUMNS]
    column = np.full(len(common), -1)
    column[kept] = np.arange(len(kept))
    column[PAD] = -1
    return _tfidf(*(counts_of(x, column[x[:, 0].astype(np.int64)], len(kept)) for x in (train, test)))


def pair_tfidf(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """The same of neighbouring tokens, thrown into :data:`COLUMNS` columns by a hash."""
    def columns(x: np.ndarray) -> np.ndarray:
        first, second = (part.astype(np.uint64) for part in (x[:, 0, :-1], x[:, 0, 1:]))
        mixed = (first * np.uint64(0x9E3779B97F4A7C15) + second) * np.uint64(0xBF58476D1CE4E5B9)
        place = ((mixed >> np.uint64(40)) % np.uint64(COLUMNS)).astype(np.int64)
        return np.where((first == PAD) | (second == PAD), -1, place)

    return _tfidf(*(counts_of(x, columns(x), COLUMNS) for x in (train, test)))


def _tfidf(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.feature_extraction.text import TfidfTransformer

    fitted = TfidfTransformer().fit(train)
    first, second = (fitted.transform(x).toarray().astype(np.float32) for x in (train, test))
    return first, second


def statistics(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Ten numbers of each text, (N, 1, T) -> (N, 10).

    Tokens, share of different tokens, share unknown, entropy of the tokens in nats, characters a token; shares of
    letters, capitals, digits, blanks and other signs among the characters.
    """
    pieces, out = _pieces(spec), np.zeros((len(samples), 10), np.float32)
    kinds = np.array([[len(p), *(sum(map(test, p)) for test in (str.isalpha, str.isupper, str.isdigit, str.isspace))]
                      for p in pieces], np.float64)
    for row, sample in zip(out, samples[:, 0].astype(np.int64), strict=True):
        tokens = sample[sample != PAD]
        if not len(tokens):
            continue
        counts = np.unique(tokens, return_counts=True)[1] / len(tokens)
        length, letters, capitals, digits, blanks = kinds[tokens].sum(0)
        other = length - letters - digits - blanks
        shares = np.array([letters, capitals, digits, blanks, other]) / max(1.0, length)
        row[:] = [len(tokens), len(counts) / len(tokens), (tokens == UNK).mean(), -(counts * np.log(counts)).sum(),
                  length / len(tokens), *shares]
    return out


def _standardised(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    first, second = statistics(train, spec), statistics(test, spec)
    mean, std = first.mean(0), first.std(0)
    std = np.where(std < 1e-6, 1, std)
    return (first - mean) / std, (second - mean) / std


#: Rows of it have length 1, and columns of rare tokens are to stay small.
ALIKE = "token TF-IDF"
#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"token TF-IDF": token_tfidf, "token pair TF-IDF": pair_tfidf,
                                "text statistics": _standardised}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone reads numbers of a vocabulary and must know its size."""
    return {"vocabulary": len(_tokenizer(spec))}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Texts written out: (B, 1, T) -> (B, 160, 256, 3) uint8.

    A hidden token (-1, or ``<mask>``) is a grey block. Where ``like`` holds other tokens in the same places, they are
    red. What does not fit ends in an ellipsis.
    """
    tokens = np.rint(values[:, 0]).astype(np.int64)
    compared = tokens if like is None or like.shape != values.shape else np.rint(like[:, 0]).astype(np.int64)
    return np.stack([_page(row, other, _pieces(spec)) for row, other in zip(tokens, compared, strict=True)])


def _page(tokens: np.ndarray, like: np.ndarray, pieces: tuple[str, ...], high: int = 160,
          wide: int = 256) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    page = Image.new("RGB", (wide, high), "white")
    draw, font, line, edge = ImageDraw.Draw(page), ImageFont.load_default(), 13, 4
    x, y = float(edge), edge
    for token, other in zip(tokens.tolist(), like.tolist(), strict=True):
        if token == PAD:
            continue
        hidden = token in (-1, MASK)
        piece = "  " if hidden else pieces[token] if token < len(pieces) else pieces[UNK]
        for i, part in enumerate(piece.split("\n")):
            width = 10.0 if hidden else draw.textlength(_drawable(part), font=font)
            if i or x + width > wide - edge:
                x, y, part = float(edge), y + line, part.lstrip()
            if y + 2 * line > high and x + width > wide - 5 * edge or y + line > high:
                draw.text((wide - 4 * edge, high - line - edge), "...", "black", font=font)
                return np.asarray(page)
            if hidden:
                draw.rectangle((x, y + 2, x + 8, y + 11), fill=(150, 150, 150))
            else:
                draw.text((x, y), _drawable(part), "black" if token == other else (200, 30, 30), font=font)
            x += width
    return np.asarray(page)


def _drawable(text: str) -> str:
    """Text without control characters, of which no font knows anything."""
    return "".join(c if c.isprintable() else " " for c in text)


def _tokenizer(spec: DataSpec) -> Tokenizer:
    return load_tokenizer(str(spec.traits["tokenizer"]))


def _pieces(spec: DataSpec) -> tuple[str, ...]:
    return _pieces_of(str(spec.traits["tokenizer"]))


@lru_cache(maxsize=8)
def _pieces_of(tokenizer: str) -> tuple[str, ...]:
    return tuple(load_tokenizer(tokenizer).pieces())
