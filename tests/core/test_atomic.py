from __future__ import annotations

import errno
import os
import resource
import signal

import pytest

from osteon.core import atomic
from osteon.core.atomic import DiskFullError, StorageError, atomic_path, remove_leftovers, write_bytes, write_text


def test_write_replaces_whole_content_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "new folder" / "a.txt"
    write_text(file, "a long first text ä")
    write_text(file, "short")
    assert file.read_bytes() == b"short"
    assert os.listdir(file.parent) == ["a.txt"]


@pytest.mark.parametrize(("error", "told"), [(ValueError("boom"), ValueError), (KeyboardInterrupt(), KeyboardInterrupt),
                                             (OSError(errno.EIO, "io"), StorageError)])
def test_failed_write_keeps_old_file_and_no_temporary(tmp_path, error, told):
    file = tmp_path / "a"
    write_bytes(file, b"old")
    with pytest.raises(told), atomic_path(file) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_temporary_is_a_hidden_sibling_and_target_is_old_until_the_end(tmp_path):
    file = tmp_path / "a"
    write_bytes(file, b"old")
    with atomic_path(file) as temporary:
        temporary.write_bytes(b"new")
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"


def test_file_is_flushed_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def note_flush(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def note_rename(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", note_flush)
    monkeypatch.setattr(atomic.os, "replace", note_rename)
    write_bytes(tmp_path / "a", b"1")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("exists", [True, False])
def test_disk_full_says_what_was_kept(tmp_path, exists):
    file = tmp_path / "weights"
    if exists:
        write_bytes(file, b"old")
    with pytest.raises(DiskFullError) as caught, atomic_path(file) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ("previous file is complete and was kept" in str(caught.value)) == exists
    assert ("Nothing was left behind" in str(caught.value)) != exists
    assert "weights" in str(caught.value) and "Free some space" in caught.value.fix and caught.value.code == 2
    assert os.listdir(tmp_path) == (["weights"] if exists else [])


def test_a_real_limit_on_file_size_is_reported_as_disk_full(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    write_bytes(tmp_path / "a", b"old")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        with pytest.raises(DiskFullError):
            write_bytes(tmp_path / "a", b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_the_error_text_of_safetensors_counts_as_disk_full(tmp_path):
    with pytest.raises(DiskFullError), atomic_path(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_links_are_followed_and_permissions_are_ordinary(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "real").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_remove_leftovers_takes_only_our_temporaries(tmp_path):
    names = [".a.txt.12.0123abcd.tmp", ".tmpA1b2C3", ".a.tmp", ".tmp_notes", "b.tmp", ".hidden",
             "a.txt.12.0123abcd.tmp"]
    for name in names:
        (tmp_path / name).touch()
    assert sorted(p.name for p in remove_leftovers(tmp_path)) == names[:2]
    assert sorted(os.listdir(tmp_path)) == sorted(names[2:])
    assert remove_leftovers(tmp_path / "absent") == []
