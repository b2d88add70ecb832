from __future__ import annotations

import json
import subprocess
import sys

import pytest

from osteon.core.errors import InUseError
from osteon.core.run import RunFolder
from osteon.verbs import _pool
from osteon.verbs import demo as module
from osteon.verbs._pool import Job, call_alone, run_jobs
from osteon.verbs.demo import demo

#: stands at the top of a script, with no `if __name__ == "__main__"`
SCRIPT = """
print("once", flush=True)
from osteon.verbs._pool import workers
with workers(2) as pool:
    print(sorted(pool.map(abs, [-1, -2])), flush=True)
print(__file__.endswith("script.py"))
"""


def test_a_script_without_a_guard_is_run_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:3] == ["once", "[1, 2]", "True"] and done.returncode == 0, done.stderr


def test_the_worker_settings_are_gone_afterwards(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    main = dict(vars(sys.modules["__main__"]))
    import os

    with _pool.workers(1):
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
    after = vars(sys.modules["__main__"])
    assert after["__spec__"] is main["__spec__"] and after.get("__file__") == main.get("__file__")


@pytest.fixture
def in_process(monkeypatch):
    """Run the jobs of a pool here and now, which is faster than starting processes for them."""
    from concurrent.futures import Future

    class Pool:
        def submit(self, function, *args):
            future: Future = Future()
            try:
                # one thread stays what this process has
                future.set_result(args[0](**args[1]) if function is call_alone else function(*args))
            except Exception as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(_pool, "workers", lambda count=None: __import__("contextlib").nullcontext(Pool()))


def test_the_whole_story_in_small(tmp_path, in_process, monkeypatch, capsys):
    assert set(module.RECIPES) == {"simclr", "mae", "spark"}  # joint, masked transformer, masked convolution
    monkeypatch.setattr(module, "RECIPES", {k: module.RECIPES[k] for k in ("mae", "spark")})
    monkeypatch.setattr(module, "BUDGETS", (10, "all"))
    evaluated = module.evaluate
    asked: list[dict] = []

    def quick(runs, **options):
        asked.append(options)
        return evaluated(runs, **{**options, "scratch_steps": 0, "metrics": ("ncm",)})

    monkeypatch.setattr(module, "evaluate", quick)
    page = demo(out=tmp_path / "demo", seeds=1, steps=2)
    seen = capsys.readouterr().err
    result = json.loads((tmp_path / "demo" / "evaluation.json").read_text())
    assert page == tmp_path / "demo" / "report.html" and page.stat().st_size > 10_000
    assert result["verdict"]["sentence"] in " ".join(seen.split()) and str(page) in seen and "2/2 runs" in seen
    assert {a["source"] for a in result["arms"]} == {
        "mae", "spark", "raw pixels", "image statistics", "untrained vit_tiny", "untrained resnet_tiny"}
    assert {a["budget"] for a in result["arms"]} == {*module.BUDGETS} and asked[0]["train"] == "digits:train"
    with pytest.raises(InUseError, match="train.steps: 2 -> 3"):
        demo(out=tmp_path / "demo", seeds=1, steps=3, progress=False)
    assert demo(out=tmp_path / "demo", seeds=1, steps=2, progress=False) == page
    assert capsys.readouterr().err == ""


def test_a_failing_job_is_told_with_its_folder_after_the_others_have_ended(tmp_path, in_process):
    good = {"source": "digits:train", "objective": "simclr", "backbone": "resnet_tiny", "steps": 1, "batch_size": 8,
            "progress": False, "report": False, "settings": {"limit": 16}}
    jobs = [Job(tmp_path / name, 1, {**good, **changes, "out": str(tmp_path / name)})
            for name, changes in (("bad", {"objective": "no_such"}), ("good", {}))]
    with pytest.raises(Exception, match="no_such"):
        run_jobs(jobs, progress=False)
    assert (tmp_path / "good" / "model.safetensors").exists()


def test_the_newest_line_of_a_run_that_is_being_written(tmp_path):
    job = Job(tmp_path, 10, {})
    assert _pool._last(job) == {}
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 3, "loss": 0.5})
    run.close()
    assert _pool._last(job) == {"step": 3, "loss": 0.5}
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    assert _pool._last(job) == {}
