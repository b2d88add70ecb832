"""Every code block of the README and the guides runs, page by page, as a reader would run it.

A page's blocks run in order in one folder that holds ``photos/``, ``labelled/``, ``train.csv``, ``test.csv``, two small
tables in ``cifar10/`` and, where a page needs it, a small run ``runs/simclr``. The many steps of the guide that uses
``cifar10/`` are cut to a few. A block with a title is a file. An HTML comment ``<!-- skip: reason -->``
on the line before leaves a block out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as arrow
import pytest
from PIL import Image
from pyarrow import parquet

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SKIP = re.compile(r"<!-- skip: (\S.{10,}) -->")
FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\s*$')
RUNNABLE = ("bash", "python")
#: Languages of blocks that show something and are not run.
SHOWN = ("toml", "text", "yaml", "")


class Block(NamedTuple):
    """A code block: where it starts, its language, the file it stands for, why it is skipped, its text."""

    line: int
    language: str
    title: str
    skip: str
    text: str


def blocks(page: str) -> list[Block]:
    """The code blocks of a page."""
    found, lines, number = [], page.splitlines(), 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        if not fence:
            assert not lines[number].lstrip().startswith("```"), f"line {number + 1}: a fence this test cannot read"
            number += 1
            continue
        end = lines.index("```", number + 1)
        reason = SKIP.fullmatch(lines[number - 1].strip()) if number else None
        text = "\n".join(lines[number + 1:end]) + "\n"
        found.append(Block(number + 1, fence[1], fence[2] or "", reason[1] if reason else "", text))
        number = end + 1
    return found


def pictures(folder: Path, count: int, rng: np.random.Generator, kind: int | None = None) -> list[Path]:
    """Write stripes of random slope and colour; the class is the width of the stripes."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:16, :16]
    paths = []
    for i in range(count):
        width = 2 + 2 * (i % 3 if kind is None else kind)
        wave = np.sin((x * rng.uniform(-1, 1) + y * rng.uniform(0.5, 1)) * np.pi / width + rng.uniform(0, 6))
        image = 128 + 60 * wave[..., None] * rng.uniform(0.3, 1, 3) + rng.normal(0, 15, (16, 16, 3))
        paths.append(folder / f"{i:03d}.png")
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def table(path: Path, count: int, rng: np.random.Generator) -> None:
    """A small table of pictures in ten classes, as the guide's data set comes."""
    folder = path.with_suffix("")
    rows = []
    for kind in range(10):
        for file in pictures(folder / str(kind), count, rng, kind % 3):
            rows.append({"image": {"bytes": file.read_bytes(), "path": f"{path.stem}/{kind}/{file.name}"},
                         "label": kind})
    shutil.rmtree(folder)
    parquet.write_table(arrow.Table.from_pylist(rows), path)


def execute(command: list[str], folder: Path, cache: Path) -> str:
    """Run a block as a reader would; the failure shows what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OSTEON_CACHE": str(cache), "PYTHONWARNINGS": "default",
           "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, f"exit code {run.returncode}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of a reader's own: images without labels, and two tables of labelled ones."""
    folder = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    pictures(folder / "photos", 96, rng)
    for part, count in (("train", 20), ("test", 15)):
        rows = [f"{path.relative_to(folder)},{name}" for kind, name in enumerate(("fine", "middle", "coarse"))
                for path in pictures(folder / "labelled" / f"{part}-{name}", count, rng, kind)]
        (folder / f"{part}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def with_tables(photos, tmp_path_factory):
    """The same folder with two small tables of ten classes."""
    folder, rng = tmp_path_factory.mktemp("with-tables") / "reader", np.random.default_rng(1)
    shutil.copytree(photos, folder)
    for part, count in (("train", 130), ("test", 20)):
        table(folder / "cifar10" / f"{part}.parquet", count, rng)
    return folder


@pytest.fixture(scope="module")
def with_run(photos, tmp_path_factory):
    """The same folder after a first short pre-training."""
    folder = tmp_path_factory.mktemp("with-run") / "reader"
    shutil.copytree(photos, folder)
    execute(["osteon", "pretrain", "photos/", "--steps", "20", "--out", "runs/simclr", "-q"], folder, photos / "cache")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page, photos, tmp_path, request):
    todo = blocks(page.read_text(encoding="utf-8"))
    for block in todo:
        assert block.language in (*RUNNABLE, *SHOWN), f"{page.name}:{block.line}: language '{block.language}'"
    todo = [block for block in todo if block.language in RUNNABLE and not block.skip]
    if not todo:
        pytest.skip("no block to run on this page")
    text = "".join(block.text for block in todo)
    needs_run = "runs/simclr" in text and not re.search(r"--out runs/simclr\b", text)
    folder = tmp_path / "reader"
    start = request.getfixturevalue("with_tables" if "cifar10/" in text else "with_run") \
        if needs_run or "cifar10/" in text else photos
    shutil.copytree(start, folder)
    for block in todo:
        if "cifar10/" in text:
            block = block._replace(text=re.sub(r"(steps[ =])\d{3,}", r"\g<1>5", block.text))
        if block.title.startswith("test_"):
            (folder / block.title).write_text(block.text)
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", block.title]
        elif block.title:
            (folder / block.title).write_text(block.text)
            continue
        elif block.language == "bash":
            command = ["bash", "-euo", "pipefail", "-c", block.text]
        else:
            command = [sys.executable, "-c", block.text]
        try:
            execute(command, folder, photos / "cache")
        except AssertionError as failure:
            raise AssertionError(f"{page.name}:{block.line}: {failure}") from None


def test_the_reader_of_blocks_sees_languages_titles_and_reasons():
    page = ("Text.\n\n<!-- skip: takes a cluster of machines -->\n```bash\nrun\n```\n"
            '```python title="a.py"\nx = 1\n\ny = 2\n```\n'
            "<!-- skip: no -->\n```bash\nshort reasons do not count\n```\n")
    assert blocks(page) == [Block(4, "bash", "", "takes a cluster of machines", "run\n"),
                            Block(7, "python", "a.py", "", "x = 1\n\ny = 2\n"),
                            Block(13, "bash", "", "", "short reasons do not count\n")]


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            generated = target.startswith("methods/")
            assert generated or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_documented_exit_codes_are_those_of_the_code():
    from osteon.core.errors import EXIT_CODES

    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == list(EXIT_CODES)


def test_every_dependency_has_a_reason():
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.search(r"^dependencies = .*?^\[project.scripts\]", project, re.MULTILINE | re.DOTALL)[0]
    names = {name for name in re.findall(r'"([A-Za-z][\w-]*)[^"]*"', lists) if name != "osteon"}
    assert len(names) > 20
    assert not {name for name in names if not re.search(rf"\| [^|]*\b{re.escape(name)}\b", page)}


def test_the_site_builds_strictly_with_a_page_for_every_method(tmp_path):
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    pytest.importorskip("material", reason="the docs extra is not installed")
    from osteon.core import registry

    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)], cwd=ROOT, env=env,
                   capture_output=True, check=True)
    for card in registry.cards():
        page = (tmp_path / "methods" / f"{card.kind}-{card.name.replace('_', '-')}" / "index.html").read_text()
        assert all(f"<code>{option.name}</code>" in page for option in registry.options(card))
        assert all(title.split("&")[0].split("'")[0] in page for title in card.papers[:1])
    assert not re.search(r'(?:src|href)="https?://(?:fonts|cdn|unpkg)', (tmp_path / "index.html").read_text())
