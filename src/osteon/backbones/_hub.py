"""Names on the Hub with a revision, and the commit that was loaded: ``NAME@REVISION``. No code of the Hub is run."""

from __future__ import annotations

import os
import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = ("model.safetensors", "config.json", "pytorch_model.bin")


def split_revision(name: str) -> tuple[str, str | None]:
    """``NAME@REVISION`` as name and revision (a branch, a tag or a commit); a path that exists is never cut."""
    head, at, revision = name.rpartition("@")
    if not at or not head or not revision or os.path.exists(os.path.expanduser(name)):
        return name, None
    return head, revision


def cached_commit(repository: str, revision: str | None) -> str:
    """The commit whose files lie in the Hub's cache under this revision; empty where that cannot be told."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return ""
    for file in _FILES:
        found = try_to_load_from_cache(repository, file, revision=revision or "main")
        if isinstance(found, str) and _COMMIT.fullmatch(Path(found).parent.name):
            return Path(found).parent.name
    return ""
