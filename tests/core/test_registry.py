"""Cards are found by parsing, options by reading signatures; a malformed file is named with its line."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from osteon.core import registry
from osteon.core.card import KINDS, ROOMS
from osteon.core.errors import UsageError
from osteon.core.options import Option
from osteon.core.signature import argument_docs

METHOD = '''
"""Toy: pulls things together.

More words.
"""

from __future__ import annotations

from osteon.core.card import Card

CARD = Card(kind="objective", name="toy", papers=("A Toy Paper",), modalities=("image",), differs="nothing known",
            rows=(7,), cost="1 forward per image")
DEPTH = 3


def double(x: float) -> float:
    """Twice."""
    return 2 * x


class _Helper:
    """Not the method."""


class Base:
    """A base.

    Args:
        backbone: what is trained.
        width: from the base.
        depth: layers,
            over two lines.
    """

    def __init__(self, backbone, data, *, width: int | None = None, depth: int = DEPTH, end: float = 1 / 3) -> None:
        self.got = (backbone, data, width, depth, end)


class Toy(Base):
    """The method.

    Args:
        width, end: shared words.

    Raises:
        depth: not documentation of an option.
    """
'''


@pytest.fixture
def house(tmp_path, monkeypatch):
    """An empty package laid out like osteon, which the registry reads instead of osteon's own rooms."""
    for room in ROOMS.values():
        (tmp_path / room).mkdir(exist_ok=True)
    monkeypatch.setattr(registry, "PACKAGE", tmp_path)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    registry.clear()
    yield tmp_path
    registry.clear()


def write(house: Path, text: str = METHOD, room: str = "objectives", name: str = "toy") -> Path:
    file = house / room / f"{name}.py"
    file.write_text(textwrap.dedent(text).lstrip())
    registry.clear()
    return file


def test_a_file_with_a_card_is_a_method(house):
    file = write(house)
    (house / "objectives" / "_private.py").write_text("CARD = 3")
    (house / "objectives" / "plain.py").write_text('"""CARD = is mentioned only."""\n')
    (house / "objectives" / "docs.py").write_text('"""Text.\n\nCARD = Card(...) heads a file.\nclass X is next.\n"""\n')
    registry.clear()
    (card,) = registry.cards()
    assert (card.kind, card.name, card.summary) == ("objective", "toy", "Toy: pulls things together.")
    assert (card.papers, card.rows, card.differs) == (("A Toy Paper",), (7,), "nothing known")
    assert (card.backbones, card.labels, card.file) == (("tokens", "maps"), False, str(file))


def test_options_come_from_the_text_of_the_constructor(house):
    write(house)
    assert registry.options(registry.find("objective", "toy")) == [
        Option("width", "int | None", None, "shared words."),
        Option("depth", "int", 3, "layers, over two lines."),
        Option("end", "float", "1 / 3", "shared words.")]


@pytest.mark.parametrize(("body", "expected"), [
    ("def __init__(self, backbone, data, k: int = 5, *, t: 'float' = -0.1, need: str) -> None:\n        pass",
     [Option("k", "int", 5), Option("t", "float", -0.1), Option("need", "str", None, required=True)]),
    ("def __init__(self, backbone, *, betas=(0.9, 0.95)):\n"
     "        '''Make.\n\n        Args:\n            betas (tuple): moments.\n        '''",
     [Option("betas", "", (0.9, 0.95), "moments.")]),
    ("x = 1", []),
])
def test_options_of_other_constructors(house, body, expected):
    head, _, _ = METHOD.partition("class _Helper")
    write(house, f"{head.strip()}\n\n\nclass Toy:\n    {body}\n")
    assert registry.options(registry.find("objective", "toy")) == expected


def test_options_of_a_dataclass(house):
    head, _, _ = METHOD.partition("class _Helper")
    write(house, head.strip() +
          '\n\n\n@dataclass(frozen=True)\nclass Toy:\n    """D.\n\n    Args:\n'
          '        k: neighbours.\n    """\n\n'
          '    k: int = 20\n    metric: Literal["cosine"] = "cosine"\n    other: ClassVar[int] = 3\n')
    assert registry.options(registry.find("objective", "toy")) == [
        Option("k", "int", 20, "neighbours."), Option("metric", "Literal['cosine']", "cosine")]


def test_filters(house):
    write(house)
    write(house, METHOD.replace('"toy"', '"knn"').replace('"objective"', '"evaluator"').replace("(7,)", "(17,)")
          .replace('("image",)', '("image", "table")').replace("A Toy Paper", "Nearest Things"), "evaluators", "knn")
    names = lambda **q: [c.name for c in registry.cards(**q)]  # noqa: E731
    assert names() == ["toy", "knn"]  # by kind, in the order of KINDS
    assert names(kind="evaluator") == ["knn"] and names(kind="merger") == []
    assert names(modality="table") == ["knn"] and names(modality="image") == ["toy", "knn"]
    assert names(words="NEAREST things") == ["knn"] and names(words="nearest toy") == ["knn"]  # summary says Toy
    assert names(words="absent") == []
    assert names(paper="toy paper") == ["toy"] and names(paper="7") == ["toy"] and names(paper=17) == ["knn"]
    with pytest.raises(UsageError, match="Did you mean 'objective'"):
        registry.cards(kind="objectives")
    with pytest.raises(UsageError, match="Did you mean 'image'"):
        registry.cards(modality="images")


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ('CARD = Card(', "CARD = dict(", 10, "not a Card"),
    ('kind="objective", ', "", 10, "lacks kind"),
    ('kind="objective"', 'kind="objektive"', 10, "Did you mean 'objective'"),
    ('kind="objective"', 'kind="adapter"', 10, "lies among the objectives"),
    ('name="toy"', 'name="tay"', 10, "differs from the file's name"),
    ('name="toy"', 'name=NAME', 10, "'name' is not a constant"),
    ('rows=(7,)', 'raws=(7,)', 11, "no field 'raws'. Did you mean 'rows'"),
    ('rows=(7,)', 'rows=7', 10, "rows must be a tuple of int"),
    ('rows=(7,)', 'rows=("7",)', 10, "rows must be a tuple of int"),
    ('("A Toy Paper",)', '("A Toy Paper")', 10, "papers must be a tuple of str"),
    ('modalities=("image",)', 'modalities=()', 10, "modalities is empty"),
    ('differs="nothing known"', 'differs=" "', 10, "differs is empty"),
    ('cost="1 forward per image"', 'cost=1', 10, "cost must be text"),
    ('cost="1 forward per image"', 'labels=1', 10, "labels must be"),
    ('CARD = Card(', 'CARD = Card("objective", ', 10, "named arguments only"),
    ('cost="1 forward per image")', 'cost="1 forward per image"', 10, "not valid Python"),
])
def test_a_malformed_card_is_named_with_its_line(house, old, new, line, message):
    file = write(house, METHOD.replace(old, new, 1))
    with pytest.raises(UsageError, match=message) as caught:
        registry.cards()
    assert caught.value.where == f"{file}:{line}" and caught.value.code == 2 and caught.value.fix


def test_find_knows_spellings_and_suggests(house):
    write(house)
    assert registry.find("objective", "Toy").name == registry.find("objective", " t-o_y").name == "toy"
    with pytest.raises(UsageError, match="no objective called 'toi'. Did you mean 'toy'"):
        registry.find("objective", "toi")
    with pytest.raises(UsageError, match="no evaluator called 'toy'"):
        registry.find("evaluator", "toy")


def test_build_checks_settings_before_it_imports(house, monkeypatch):
    file = write(house)
    imported = []

    def imports(name):
        imported.append(name)
        spec = importlib.util.spec_from_file_location("toy_under_test", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    monkeypatch.setattr(registry.importlib, "import_module", imports)
    with pytest.raises(UsageError, match="Unknown setting 'dept'. Did you mean 'depth'"):
        registry.build("objective", "toy", "backbone", "data", dept=2)
    with pytest.raises(UsageError, match="depth must be int, not 'deep'"):
        registry.build("objective", "toy", "backbone", "data", depth="deep")
    assert imported == []
    built = registry.build("objective", "toy", "backbone", "data", depth="2", width="none")
    assert type(built).__name__ == "Toy" and built.got == ("backbone", "data", None, 2, 1 / 3)
    assert imported == ["osteon.objectives.toy"]


def test_a_file_needs_one_class_of_its_name(house):
    write(house, METHOD.replace("class Toy", "class Other"))
    with pytest.raises(UsageError, match="found: Base, Other"):
        registry.options(registry.find("objective", "toy"))


def test_other_packages_add_methods_without_being_imported(house, tmp_path, monkeypatch):
    package = tmp_path / "third_party_methods"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "sub" / "__init__.py").write_text("raise RuntimeError('imported')")
    for folder, name in ((package, "one"), (package / "sub", "two"), (package / "sub", "three")):
        (folder / f"{name}.py").write_text(METHOD.strip().replace('"toy"', f'"{name}"'))
    (tmp_path / "single_method_file.py").write_text(METHOD.strip().replace('"toy"', '"single_method_file"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [importlib.metadata.EntryPoint("a", v, registry.GROUP) for v in (
        "third_party_methods.one", "third_party_methods.sub", "single_method_file")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    registry.clear()
    assert [c.name for c in registry.cards()] == ["one", "single_method_file", "three", "two"]
    assert "third_party_methods" not in sys.modules
    for value in ("third_party_methods.absent", "no_such_package_at_all.x"):
        points[:] = [importlib.metadata.EntryPoint("bad", value, registry.GROUP)]
        registry.clear()
        with pytest.raises(UsageError, match="entry point 'bad'"):
            registry.cards()


def test_two_methods_of_one_name_are_refused(house, tmp_path, monkeypatch):
    write(house)
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toy.py").write_text(METHOD.strip())
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [importlib.metadata.EntryPoint("a", "toys", registry.GROUP)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    registry.clear()
    with pytest.raises(UsageError, match="Two files hold the objective 'toy'"):
        registry.cards()


def test_argument_docs_reads_one_section_only():
    text = "Sum.\n\nArgs:\n    a, b: both: yes.\n        More.\n\n    c (int): third.\nReturns:\n    d: no.\n"
    assert argument_docs(text) == {
        "a": "both: yes. More.", "b": "both: yes. More.", "c": "third."}
    assert argument_docs("No sections: here.") == {}


def test_every_card_of_osteon_has_readable_options():
    registry.clear()
    cards = registry.cards()
    assert cards and {card.kind for card in cards} <= set(KINDS)
    for card in cards:
        assert card.summary, f"{card.file} has no docstring"
        for option in registry.options(card):
            assert option.doc, f"{card.file}: the option {option.name} is not documented under Args:"
            assert option.type, f"{card.file}: the option {option.name} has no annotation"


def test_reading_the_catalogue_imports_no_torch():
    code = ("import sys; from osteon.core import registry as r; [r.options(c) for c in r.cards()]; "
            "sys.exit(any(m.split('.')[0] in ('torch', 'numpy') for m in sys.modules))")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
