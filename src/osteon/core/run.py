"""The run folder: everything a run leaves behind, written so that a kill at any moment costs at most a few steps.

``config.yaml``, ``provenance.json``, ``model.safetensors``, ``checkpoints/``, ``metrics.jsonl``, ``skipped.csv``,
``report.html``, ``lock``.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from osteon.core import lock
from osteon.core.atomic import (
    StorageError,
    atomic_path,
    make_folder,
    remove_leftovers,
    storage_error,
    write_text,
)
from osteon.core.errors import DataError, InUseError, UsageError
from osteon.core.plain import FREE_KEYS, changes, plain, read_yaml, to_yaml
from osteon.core.tensorfile import flatten_state, read_tensors, unflatten_state, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FREE_KEYS", "RunFolder", "flatten_state", "plain", "read_tensors", "unflatten_state", "write_tensors"]

#: How many of the newest checkpoints are kept.
KEEP = 2
_NAMES = frozenset({"config.yaml", "provenance.json", "model.safetensors", "checkpoints", "metrics.jsonl",
                    "skipped.csv", "report.html", "lock"})


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; created by :meth:`create_or_resume` or :meth:`lock`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        #: Messages for the user, e.g. on checkpoints that were passed over.
        self.warnings: list[str] = []
        self._metrics: IO[str] | None = None
        self._lock: int | None = None
        self._depth = 0

    # -- settings ------------------------------------------------------------------------------------------------

    def create_or_resume(self, config: Mapping[str, Any]) -> bool:
        """Write the resolved settings to a new folder, or check that an existing run has the same: was it resumed?

        Raises:
            InUseError: the run was made with other settings; every changed one is named with its old and new value.
            UsageError: the folder holds something else than a run.
        """
        self._claim()
        new = plain(config)
        if not (self.path / "config.yaml").exists():
            write_text(self.path / "config.yaml", to_yaml(new))
            return False
        different = changes(self.config(), new)
        if different:
            lines = "\n".join(f"  {key}: {old} -> {value}" for key, old, value in different)
            raise InUseError(f"The run was made with other settings:\n{lines}\n", where=str(self.path),
                             fix="Choose another --out, or start a new run from this one's weights with "
                                 f"--init {self.path}.")
        return True

    def config(self) -> dict[str, Any]:
        """The settings the run was made with.

        Raises:
            DataError: there is no readable ``config.yaml``.
        """
        file = self.path / "config.yaml"
        try:
            loaded = read_yaml(file)
        except ValueError as error:
            raise DataError("This is not a run folder: it has no readable config.yaml.", where=str(file),
                            fix="Name the folder that was given as --out.") from error
        if not isinstance(loaded, dict):
            raise DataError("config.yaml holds no settings.", where=str(file), fix="Choose another --out.")
        return loaded

    def _claim(self) -> None:
        """Make the folder, unless it holds things that are not a run's (a mistyped --out must not be filled)."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError("The output is to be a folder, but a file of that name exists.", where=str(self.path),
                             fix="Choose another --out.")
        if self.path.is_dir() and not (self.path / "config.yaml").exists():
            foreign = sorted(e.name for e in self.path.iterdir() if e.name not in _NAMES and e.name[0] != ".")
            if foreign:
                raise UsageError(f"The folder is not empty and holds no run (it has {foreign[0]!r}).",
                                 where=str(self.path), fix="Choose another --out.")
        make_folder(self.path)

    # -- lock ----------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Hold the folder alone. The system frees it when the process ends, however it ends.

        Taking it again from the same object is fine.

        Raises:
            InUseError: a living process holds it; named by number, host and start.
        """
        if self._depth == 0:
            self._claim()
            self._lock = lock.take(self.path / "lock")
            remove_leftovers(self.path)
            remove_leftovers(self.path / "checkpoints")
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0:
                self.close()
                handle, self._lock = self._lock, None
                if handle is not None:
                    lock.release(handle)

    # -- metrics -------------------------------------------------------------------------------------------------

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``, at once on its way to the disk. ``step`` counts the steps done."""
        text = json.dumps(plain(row, text_numbers=True), allow_nan=False) + "\n"
        try:
            if self._metrics is None:
                file = self.path / "metrics.jsonl"
                torn = file.exists() and file.stat().st_size > 0 and file.read_bytes()[-1:] != b"\n"
                self._metrics = open(file, "a", encoding="utf-8")
                text = "\n" + text if torn else text
            self._metrics.write(text)
            self._metrics.flush()
        except OSError as error:
            with suppress(OSError):  # closing writes what is left in the buffer, and fails as well
                self.close()
            told = storage_error(error, "metrics.jsonl", self.path, self.kept())
            raise error if told is None else told from error

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.jsonl``; a line cut short by a crash is left out."""
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        rows = (_row(line) for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        return [row for row in rows if row is not None]

    def truncate_metrics(self, step: int) -> None:
        """Drop the rows beyond ``step`` steps done: a resumed run writes them again. Rows without a step stay."""
        self.close()
        file = self.path / "metrics.jsonl"
        if file.exists():
            kept = [row for row in self.metrics() if row.get("step", 0) <= step]
            write_text(file, "".join(json.dumps(plain(r, text_numbers=True), allow_nan=False) + "\n" for r in kept))

    def close(self) -> None:
        """Close the metrics file; the next row opens it again."""
        file, self._metrics = self._metrics, None
        if file is not None:
            file.close()

    # -- tensors -------------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *,
                        best: bool = False) -> Path:
        """Write ``checkpoints/step_00000123.safetensors`` durably, then delete all but the newest two.

        Args:
            step: optimiser steps done.
            tensors: see :func:`flatten_state` for nested state.
            meta: anything JSON can hold.
            best: also keep it as ``best.safetensors`` until a better one comes.

        Raises:
            StorageError: it could not be written; the message names the checkpoint that is kept.
        """
        folder = self.path / "checkpoints"
        file, best_file = folder / f"step_{step:08d}.safetensors", folder / "best.safetensors"
        try:
            # The best one first: a run that is killed in between does this step again, and never the other way round.
            write_tensors(best_file if best else file, tensors, {"step": step, "meta": dict(meta)})
            if best:
                _copy(best_file, file)
        except StorageError as error:
            what = error.what.split(". ")[0]
            raise type(error)(f"{what}. {self.kept()}", where=error.where, fix=error.fix) from error
        files = self._checkpoints()
        # Later ones are of a future that was given up, e.g. damaged files that a resume passed over.
        stale = [f for s, f in files if s > step] + [f for s, f in files if s <= step][KEEP:]
        for old in stale:
            with suppress(OSError):
                old.unlink()
        return file

    def latest_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that is whole: ``(step, tensors, meta)``, or None when there is none.

        Damaged files are passed over, each with a message in :attr:`warnings`.
        """
        for _, file in self._checkpoints():
            try:
                return _checkpoint(file)
            except DataError as error:
                self.warnings.append(f"Checkpoint {file.name} was passed over. {error}")
        return None

    def best_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The checkpoint saved with ``best=True``, or None."""
        file = self.path / "checkpoints" / "best.safetensors"
        return _checkpoint(file) if file.exists() else None

    def kept(self) -> str:
        """A sentence on what a run can go on from."""
        files = self._checkpoints()
        return (f"The checkpoint of step {files[0][0]} is complete and was kept: the same command goes on from there."
                if files else "No checkpoint had been written yet.")

    def _checkpoints(self) -> list[tuple[int, Path]]:
        """(step, file), newest first."""
        found = []
        for file in (self.path / "checkpoints").glob("step_*.safetensors"):
            digits = file.stem.removeprefix("step_")
            if digits.isdecimal():
                found.append((int(digits), file))
        return sorted(found, reverse=True)

    def save_model(self, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Write ``model.safetensors``: the backbone's weights with what is needed to build it again."""
        write_tensors(self.path / "model.safetensors", state, plain(meta))
        return self.path / "model.safetensors"

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Write any named tensors to the file ``name`` of the run, e.g. the batch at which a monitor stopped."""
        write_tensors(self.path / name, tensors, {})
        return self.path / name

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """``(state, meta)`` of ``model.safetensors``.

        Raises:
            DataError: the run has no finished model, or the file is damaged.
        """
        file = self.path / "model.safetensors"
        if not file.exists():
            raise DataError("This run has no model.safetensors: it was not finished.", where=str(self.path),
                            fix="Run the same pretrain command again to finish it.")
        return read_tensors(file)

    # -- documents -----------------------------------------------------------------------------------------------

    def write_json(self, name: str, obj: Any) -> Path:
        """Write ``obj`` as JSON to the file ``name`` of the run; numbers that are not finite become null."""
        write_text(self.path / name, json.dumps(plain(obj, finite=True), indent=2, allow_nan=False) + "\n")
        return self.path / name

    def provenance(self) -> dict[str, Any]:
        """What ``provenance.json`` holds; empty where there is none that can be read."""
        try:
            found = json.loads((self.path / "provenance.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_provenance(self, now: Mapping[str, Any]) -> str:
        """Write ``provenance.json``; of a run that is taken up again the first stays, and what changed is added.

        Args:
            now: what :func:`osteon.core.provenance.collect` gave.

        Returns:
            A message when something has changed that may change bits, or an empty text.
        """
        from osteon.core.provenance import differences, told

        now, before = plain(now, finite=True), self.provenance()
        if not before:
            self.write_json("provenance.json", now)
            return ""
        different = differences(before, now)
        again = {"time": now.get("time"), "command": now.get("command"), "changed": different}
        self.write_json("provenance.json", {**before, "resumed": [*before.get("resumed", []), again]})
        return f"Since this run began: {told(different)}. Results may differ in their last bits." if different else ""

    def write_skipped(self, rows: Iterable[Any]) -> Path:
        """Write ``skipped.csv`` from pairs (or objects with) ``id``, ``reason``."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "reason"])
        for row in rows:
            writer.writerow([row.id, row.reason] if hasattr(row, "reason") else list(row))
        write_text(self.path / "skipped.csv", text.getvalue())
        return self.path / "skipped.csv"


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    return {key: float(value) if value in ("nan", "inf", "-inf") else value for key, value in row.items()}


def _checkpoint(file: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    tensors, note = read_tensors(file)
    if not isinstance(note, dict) or type(note.get("step")) is not int or not isinstance(note.get("meta"), dict):
        raise DataError("The file is no checkpoint: it does not say of which step.", where=str(file),
                        fix="Use an earlier checkpoint.")
    return note["step"], tensors, note["meta"]


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)  # both names keep the content: checkpoints are replaced, never overwritten
        except OSError:
            shutil.copyfile(source, temporary)
