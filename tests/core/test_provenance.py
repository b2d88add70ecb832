from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy

from osteon.core import provenance
from osteon.core.provenance import collect, git_state


def test_collects_what_is_needed_and_is_json():
    found = collect({"note": 1}, data_fingerprint="abc",
                    initial_weights=[{"name": "w", "license": "MIT"}, {"name": "v"}])
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["versions"]["python"] == "{}.{}.{}".format(*sys.version_info[:3])
    assert "torch" in found["versions"]
    assert found["data_fingerprint"] == "abc" and found["note"] == 1
    assert [w["license"] for w in found["initial_weights"]] == ["MIT", "unknown"]
    assert found["cpu"]["count"] == os.cpu_count() and found["cpu"]["name"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["time"])


def test_extra_wins_and_command_is_quoted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/place/osteon", "pretrain", "my photos"])
    assert collect()["command"] == "osteon pretrain 'my photos'"
    assert collect({"command": "mine"})["command"] == "mine"


def test_git_commit_and_changes(tmp_path):
    def git(*words):
        return subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True,
                              capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)["modified"] is True


def test_no_repository_no_git_no_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert collect()["git"] is None
    monkeypatch.setenv("PATH", "")
    assert collect()["git"] is None
    monkeypatch.setattr(provenance, "PACKAGES", ("no-such-package",))
    assert list(collect()["versions"]) == ["python"]


def test_core_imports_no_torch():
    code = ("import sys; import osteon.core.run, osteon.core.provenance, osteon.core.atomic; "
            "osteon.core.provenance.collect(); sys.exit('torch' in sys.modules or 'yaml' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
