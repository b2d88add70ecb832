"""Generated texts: a small grammar of two or three clauses whose class is a topic and who acts on whom."""

from __future__ import annotations

import numpy as np

from osteon.data.listing import Listing

#: Topic -> people, things, verbs.
TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "harbour": (("sailor", "captain", "fisher", "diver"), ("boat", "anchor", "net", "wave"),
                ("pulls", "lifts", "follows", "holds", "turns")),
    "kitchen": (("cook", "baker", "guest", "waiter"), ("pan", "oven", "bread", "knife"),
                ("burns", "lifts", "holds", "turns", "warms")),
    "garden": (("farmer", "child", "neighbour", "guest"), ("tree", "fence", "rose", "knife"),
               ("shades", "holds", "follows", "turns", "scratches")),
}
_ORDERS = ("person first", "thing first")
_ADJECTIVES = ("old", "small", "quiet", "heavy", "bright", "new", "wet", "patient")
_ADVERBS = ("slowly", "often", "never", "still", "gently")
_LINKS = (", then", " while", ", but", " and", " because")
#: Names of the classes, in the order of their numbers.
CLASSES = [f"{topic}, {order}" for topic in TOPICS for order in _ORDERS]


def list_sentences(split: str | None) -> Listing:
    """2,000 generated texts of two or three clauses in words of a vocabulary of about 60.

    The class is one of three topics, and whether people act on things or things on people. The words are the same in
    both orders, so that counting them tells the topic alone; one clause in eight is of another class. ``train``
    (1,400) and ``test`` (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 2000
    labels = np.arange(count) % len(CLASSES)
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    texts = [write_text(int(label), rng) for label in labels]
    listing = Listing("sentences", [f"sentence-{i:04d}" for i in range(count)], lambda i: texts[i].encode(),
                      "sentences-1", labels=[int(v) for v in labels], class_names=CLASSES,
                      split=[str(p) for p in parts], cached=False, modality="text",
                      traits={"documents": "file", "tokenizer": "word"})
    return listing.only(split) if split else listing


def write_text(label: int, rng: np.random.Generator) -> str:
    """One text of a class."""
    clauses = []
    for _ in range(int(rng.integers(2, 4))):
        clauses.append(_clause(int(rng.integers(len(CLASSES))) if rng.random() < 1 / 8 else label, rng))
    text = clauses[0]
    for clause in clauses[1:]:
        text += f"{rng.choice(_LINKS)} {clause}"
    return f"{text}."


def _clause(label: int, rng: np.random.Generator) -> str:
    people, things, verbs = TOPICS[list(TOPICS)[label // 2]]
    person, thing = _phrase(people, rng), _phrase(things, rng)
    first, second = (person, thing) if label % 2 == 0 else (thing, person)
    adverb = f"{rng.choice(_ADVERBS)} " if rng.random() < 0.5 else ""
    return f"{first} {adverb}{rng.choice(verbs)} {second}"


def _phrase(nouns: tuple[str, ...], rng: np.random.Generator) -> str:
    adjectives = rng.choice(_ADJECTIVES, size=int(rng.integers(3)), replace=False)
    return " ".join(["the", *(str(a) for a in adjectives), str(rng.choice(nouns))])
