"""Reading text: long texts cut into windows of tokens, or documents cut to one length, by one vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._sentences import list_sentences
from osteon.data._texts import list_path
from osteon.data.codec import Codec, Plan
from osteon.data.listing import Listing, Skipped, digest, unique_ids
from osteon.modalities import Payload, Unreadable
from osteon.modalities.text import PAD, RULES, Tokenizer, decode_text, load_tokenizer, make_tokenizer
from osteon.parts.types import DataSpec

__all__ = ["CODEC", "NAMED", "cut", "list_path"]

#: Tokens of a window of running text without being asked.
USUAL_WINDOW = 128
#: Most tokens of a document that are kept without being asked.
MOST_WINDOW = 256
#: Most tokens of a sample.
MOST_ASKED = 2**20
#: What counts as a document: a line, or a whole file or row; or nothing does, and text runs on from window to window.
DOCUMENTS = ("lines", "file", "running")
#: Options of ``--set``: how text is cut into tokens, most members of a vocabulary that is learned, tokens of a sample,
#: and what a document is ("" and 0 leave it to the rules).
OPTIONS: dict[str, Any] = {"tokenizer": "", "vocabulary": 1000, "window": 0, "documents": ""}


@dataclass
class _Documents:
    """Texts with the number of the listed thing each came from."""

    rows: list[int]
    ids: list[str]
    texts: list[str]
    skipped: list[Skipped]


def cut(listing: Listing, *, like: DataSpec | None, options: Mapping[str, Any]) -> Listing:
    """The samples of listed texts: windows of tokens, ready as arrays (1, T) int32; the vocabulary is in the traits.

    Args:
        listing: of texts as bytes or paths.
        like: data whose vocabulary and window are used; None: they are made from these texts.
        options: see :data:`OPTIONS`.
    """
    known = {} if like is None else dict(like.traits)
    mode, how = _mode(listing, options, known)
    found = _gather(listing, mode == "lines")
    if not found.texts:
        first = found.skipped[0] if found.skipped else Skipped(listing.source, "is empty")
        raise DataError(f"No readable text: {first.id} {first.reason}.", where=listing.source,
                        fix="Check that these are texts.")
    tokenizer, note = _settle_tokenizer(listing, found.texts, options, known)
    notes = [*listing.notes, note]
    tokens = [tokenizer.encode(text) for text in found.texts]
    window, note = _settle_window(tokens, mode, options, known)
    notes.append(note)
    step = [range(0, len(t), window) if mode == "running" else range(min(1, len(t))) for t in tokens]
    found.skipped += [Skipped(found.ids[d], "holds no token") for d, starts in enumerate(step) if not starts]
    places = [(d, start) for d, starts in enumerate(step) for start in starts]

    def payload(i: int) -> Payload:
        document, start = places[i]
        sample = np.full((1, window), PAD, np.int32)
        piece = tokens[document][start:start + window]
        sample[0, :len(piece)] = piece
        return sample

    ids = [f"{found.ids[d]}:{start // window:06d}" if mode == "running" else found.ids[d] for d, start in places]
    taken = listing.take([found.rows[d] for d, _ in places])
    groups = taken.groups
    if groups is None and mode != "file" and len(listing.ids) > 1 and not listing.traits.get("one"):
        groups = [listing.ids[found.rows[d]] for d, _ in places]
    notes.append(_mode_note(mode, how, tokens, window, len(places)))
    traits = {"tokenizer": tokenizer.dump(), "vocabulary": len(tokenizer), "window": window, "documents": mode}
    return replace(taken, ids=unique_ids(ids), payload=payload, groups=groups, notes=notes, traits=traits,
                   skipped=[*listing.skipped, *found.skipped],
                   stamp=digest(listing.stamp, tokenizer.dump(), window, mode))


def _mode(listing: Listing, options: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[str, str]:
    """What a document is, and by which rule."""
    asked, usual = str(options["documents"]), str(listing.traits.get("documents", "file"))
    if asked and asked not in DOCUMENTS:
        raise UsageError(f"There is no kind of document '{asked}'.", where="documents",
                         fix=f"Set {', '.join(DOCUMENTS)}.")
    if asked:
        return asked, "as asked"
    if usual == "running" and known.get("documents") == "lines":
        return "lines", "rule: as in the data the model was trained on"
    rule = {"running": "texts without labels run on from window to window", "file": "each is a sample of its own"}
    return usual, f"rule: {rule[usual]}"


def _gather(listing: Listing, lines: bool) -> _Documents:
    """Decode every text; what cannot be used is kept with its reason."""
    found = _Documents([], [], [], [])
    for row, name in enumerate(listing.ids):
        try:
            text = decode_text(listing.payload(row))
        except Unreadable as reason:
            found.skipped.append(Skipped(name, str(reason)))
            continue
        parts = [(f"{name}:{n}", line) for n, line in enumerate(text.split("\n"), 1)] if lines else [(name, text)]
        full = [(part, t.strip()) for part, t in parts if t.strip()]  # an empty line is no document
        if not full:
            found.skipped.append(Skipped(name, "is empty"))
        found.rows += [row] * len(full)
        found.ids += [part for part, _ in full]
        found.texts += [t for _, t in full]
    return found


def _settle_tokenizer(listing: Listing, texts: Sequence[str], options: Mapping[str, Any],
                      known: Mapping[str, Any]) -> tuple[Tokenizer, str]:
    if known:
        tokenizer = load_tokenizer(str(known["tokenizer"]))
        return tokenizer, (f"tokens: {tokenizer.kind}, {len(tokenizer):,} members (rule: as in the data the model was "
                           "trained on)")
    usual = str(listing.traits.get("tokenizer", "bpe"))
    kind = str(options["tokenizer"]) or usual
    tokenizer = make_tokenizer(kind, texts, int(options["vocabulary"]))
    how = "as asked" if options["tokenizer"] else f"rule: {usual} unless tokenizer=... is set"
    made = "of that model" if kind.startswith("hf:") else f"learned from these texts, at most {options['vocabulary']:,}"
    return tokenizer, f"tokens: {kind} ({how}); {len(tokenizer):,} members {made}"


def _settle_window(tokens: Sequence[np.ndarray], mode: str, options: Mapping[str, Any],
                   known: Mapping[str, Any]) -> tuple[int, str]:
    if known:
        return int(known["window"]), (f"window: {known['window']} tokens (rule: as in the data the model was trained "
                                      "on)")
    window = int(options["window"])
    if window:
        if window < 4:
            raise UsageError(f"A window of {window} tokens holds no text.", where="window", fix="Set 4 or more.")
        if window > MOST_ASKED:
            raise UsageError(f"A window of {window:,} tokens is more than the limit of {MOST_ASKED:,}.", where="window",
                             fix="Set a smaller one; 0 leaves it to the rule.")
        return window, f"window: {window} tokens (as asked)"
    if mode == "running":
        return USUAL_WINDOW, f"window: {USUAL_WINDOW} tokens (rule: of running text)"
    long = float(np.percentile([len(t) for t in tokens], 95))
    window = min(MOST_WINDOW, max(8, -int(-long // 8) * 8))
    return window, (f"window: {window} tokens (rule: 95 % of the documents are no longer than {long:.0f}, in whole 8, "
                    f"at most {MOST_WINDOW})")


def _mode_note(mode: str, how: str, tokens: Sequence[np.ndarray], window: int, samples: int) -> str:
    total = sum(len(t) for t in tokens)
    if mode == "running":
        tail = sum(len(t) % window > 0 for t in tokens)
        return (f"samples: {samples:,} windows without overlap from {total:,} tokens of {len(tokens):,} texts ({how}); "
                f"{tail:,} at their ends are filled up with <pad>")
    long = sum(len(t) > window for t in tokens)
    return (f"samples: {samples:,} documents, {'a line each' if mode == 'lines' else 'whole'} ({how}); {long:,} are "
            f"cut to their first {window} tokens, the others filled up with <pad>")


def _header(payload: Payload) -> int:
    """Tokens of a sample as :func:`cut` hands it over."""
    if not isinstance(payload, np.ndarray) or payload.ndim != 2:
        raise Unreadable("was not cut into tokens")
    return int(payload.shape[1])


def _plan(headers: dict[int, int], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """One window for all, which :func:`cut` has chosen."""
    if size is not None:
        raise UsageError("Text has no size in pixels.", where="size", fix="Set window instead.")
    return Plan((1, next(iter(headers.values()))), "int32")


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    assert isinstance(payload, np.ndarray)
    return np.ascontiguousarray(payload, np.int32)


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Numbers of a vocabulary are names, not amounts: they are left as they are."""
    return (0.0,), (1.0,), 1.0


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"sentences": list_sentences}
CODEC = Codec(_header, _plan, _convert, _measure, OPTIONS, RULES)
