from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osteon import cli
from osteon.core.errors import UsageError
from osteon.data import Dataset
from osteon.data.listing import Skipped
from osteon.verbs import plan as verb
from osteon.verbs._plan_data import check_data
from osteon.verbs._plan_memory import SAFE, largest_batch, read_memory
from osteon.verbs._plan_page import size
from osteon.verbs._plan_probe import Probe, ProbeKilled, _typical, _unread, free_memory, peak_memory, probe
from osteon.verbs.plan import plan, text

GB = 10**9


def made(memory=2 * GB, batch=64, *, steps=1000, unread=0, device="cpu", samples=10_000, looks=0) -> Probe:
    """A probe as it might come back."""
    train = {"steps": steps, "batch_size": batch, "accumulate": 1, "checkpoint_every": 200}
    return Probe(batch, 0.1, 5.0, 0.5, 2.0, 0.25, memory, unread,
                 {"forward": 3, "backward": 6, "views": 1, "teachers": 0, "total": 10},
                 {"source": "digits", "objective": "mae", "backbone": "vit_tiny", "init": None, "data": {"limit": 200},
                  "train": train}, ["a note"],
                 {"parameters": 1000, "trained": 1000, "device": device, "threads": 1, "samples": samples,
                  "guard_looks": looks})


def images(count=40, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, side, side), dtype=np.uint8)


class TestMemory:
    @pytest.mark.parametrize(("words", "bytes_"), [("4GB", 4 * GB), ("512 MiB", 2**29), ("1.5g", 1_500_000_000),
                                                   ("123", 123)])
    def test_amounts_are_read(self, words, bytes_):
        assert read_memory(words) == bytes_

    @pytest.mark.parametrize("words", ["", "GB", "4 sheep", "-1GB", "0"])
    def test_what_is_none_is_refused(self, words):
        with pytest.raises(UsageError, match="no amount of memory"):
            read_memory(words)

    def test_sizes_are_written(self):
        assert [size(v) for v in (12, 1.5e3, 2.34e6, 9.87e9)] == ["12 bytes", "1.5 kB", "2.34 MB", "9.87 GB"]

    def fake(self, memory):
        """A machine on which a batch of b takes memory(b) bytes."""
        self.tried = []

        def measure(arguments, *, steps, brief):
            self.tried.append(arguments["batch_size"])
            assert brief and steps >= 2
            return made(memory(arguments["batch_size"]), arguments["batch_size"])
        return measure

    def search(self, memory, limit, *, batch=64, most=10**6, unread=0, step=1e-9):
        first = replace(made(memory(batch), batch, unread=unread), step=step)
        return largest_batch({}, first, limit, most, lambda _text: None, self.fake(memory))

    def test_on_a_line_the_answer_is_exact(self):
        """1 GB and 1 MB a sample within 90 % of 10 GB: 8,000."""
        found = self.search(lambda b: GB + b * 10**6, 10 * GB)
        assert (found["size"], found["verified"], found["why"]) == (8000, True, "memory")
        assert found["peak"] <= SAFE * 10 * GB and self.tried == [128, 8000]

    def test_a_bend_is_found_by_trying(self):
        """Beyond 1,000 samples each costs 3 MB: 1 + 1 + 7 GB at 3,333."""
        def bent(b):
            return GB + min(b, 1000) * 10**6 + max(0, b - 1000) * 3 * 10**6

        found = self.search(bent, 10 * GB)
        assert 0.95 * 3333 <= found["size"] <= 3333 and bent(found["size"]) <= 9 * GB and found["verified"]

    def test_a_first_batch_that_is_too_large_is_made_smaller(self):
        found = self.search(lambda b: GB + b * 10**7, 2 * GB, batch=512)
        assert found["size"] == 80 and all(b < 512 for b in self.tried)

    def test_a_probe_that_is_killed_bounds_the_answer(self):
        def deadly(b):
            if b > 500:
                raise ProbeKilled("killed")
            return GB + b * 10**6

        found = self.search(deadly, 100 * GB)
        assert found["verified"] and 64 <= found["size"] <= 500 and (found["tried"][-1][1] is None)

    def test_a_batch_holds_no_more_than_the_source(self):
        found = self.search(lambda b: GB + b, 10 * GB, most=300)
        assert (found["size"], found["why"]) == (300, "the source has no more samples")

    def test_nothing_fits_and_says_why(self):
        found = self.search(lambda b: 3 * GB + b, 2 * GB)
        assert found["size"] == 0 and "3.00 GB" in found["why"]

    def test_what_takes_too_long_is_foretold_and_says_so(self):
        found = self.search(lambda b: GB + b * 10**6, 10 * GB, step=1.0)
        assert (found["size"], found["verified"]) == (8000, False) and "foretold" in found["why"]

    def test_files_still_to_be_mapped_count(self):
        assert self.search(lambda b: GB + b * 10**6, 10 * GB, unread=GB)["size"] == 7000

    def test_free_and_peak_memory_are_of_this_machine(self):
        free, whose = free_memory()
        assert 2**26 < free < 2**50 and whose
        before = peak_memory()
        held = np.ones(50_000_000, np.uint8)
        assert peak_memory() >= before and held.sum() == 50_000_000


class TestProbeParts:
    def test_the_first_steps_do_not_count_and_a_hiccup_only_three_times(self):
        assert _typical(np.array([9.0, 5, 4] + [1.0] * 8 + [2.0, 40.0])) == pytest.approx((8 * 1 + 2 + 3) / 10)
        assert _typical(np.array([9.0, 3.0])) == 3.0

    def test_mapped_files_count_with_what_the_probe_did_not_touch(self, tmp_path):
        np.save(tmp_path / "x.npy", np.zeros((64, 1, 256, 256), np.uint8))
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
        # one row of 64: each further one leaves 63/64 of what was left
        assert _unread(mapped, 0) == mapped.nbytes and _unread(mapped, 1) == int(mapped.nbytes * 63 / 64)
        assert _unread(mapped[3:10], 10**6) == 0 and _unread(np.zeros((4, 4)), 1) == 0


class TestData:
    def test_constant_images_copies_and_skipped_files_are_counted(self):
        x = images()
        x[3], x[5], x[7] = 9, x[4], x[4]
        facts, warnings = check_data(replace(Dataset.from_arrays(x), skipped=[Skipped("a", "broken"),
                                                                              Skipped("b", "broken")]))
        assert (facts["constant"], facts["exact_copies"], facts["skipped"]) == (1, 2, {"broken": 2})
        assert [w.split(":")[0] for w in warnings[:3]] == [
            "2 files cannot be used", "1 images have one value everywhere", "2 of 40 images are exact copies of others"]

    def test_near_copies_are_found_between_the_halves(self):
        x = np.repeat(images(40, 32).astype(np.int64), 2, axis=0)
        x[1::2] = np.clip(x[1::2] + 6, 0, 255)
        facts, warnings = check_data(Dataset.from_arrays(x.astype(np.uint8)))
        # each of 40 pairs is torn apart with probability 40/79
        assert 10 <= facts["near_copies"]["found"] <= 30 and facts["near_copies"]["searched"] == 40
        assert any("near copies" in w for w in warnings)

    def test_skewed_and_scarce_classes_are_named(self):
        labels = np.array([0] * 36 + [1] * 3 + [2])
        facts, warnings = check_data(Dataset.from_arrays(images(), labels, class_names=["cat", "dog", "cow"]))
        assert facts["classes"] == {"cat": 36, "dog": 3, "cow": 1}
        assert any("cat has 36 images, cow 1" in w for w in warnings)
        assert any(w.startswith("2 classes have fewer than 10") for w in warnings)

    def test_several_labels_and_tiny_images(self):
        labels = np.array([[1, 1], [0, 1]] * 20)
        facts, warnings = check_data(Dataset.from_arrays(images(side=8), labels))
        assert list(facts["classes"].values()) == [20, 40] and any("8 pixels are tiny" in w for w in warnings)

    def test_good_data_raise_no_warning(self):
        facts, warnings = check_data(Dataset.from_arrays(images(), np.arange(40) % 2))
        assert warnings == [] and facts["samples"] == 40


class TestPlan:
    @pytest.fixture
    def probed(self, monkeypatch):
        """Plans answered by given probes instead of real ones."""
        def use(found: Probe) -> list[dict]:
            asked: list[dict] = []
            monkeypatch.setattr(verb, "probe", lambda arguments, *, steps: asked.append(arguments) or found)
            return asked
        return use

    def test_time_adds_up(self, probed):
        """1,000 steps of 0.1 s, a save every 200 and at each of 11 looks of 0.25 s, 5 s before and 2 s after."""
        probed(made(looks=11))
        time = plan("digits", largest=False, progress=False)["time"]
        assert (time["steps"], time["saves"], time["guard"]) == (100.0, 16 * 0.5, 11 * 0.25)
        assert time["total"] == pytest.approx(100 + 8 + 2.75 + 5 + 2)

    def test_memory_and_compute(self, probed):
        probed(made(unread=GB))
        found = plan("digits", memory="2.5GB", largest=False, progress=False)
        assert (found["memory"]["peak"], found["memory"]["fits"]) == (3 * GB, False)
        assert found["flop"]["run"] == 10_000 and any("does not fit" in w for w in found["warnings"])
        assert plan("digits", memory="3GB", largest=False, progress=False)["memory"]["fits"]

    def test_too_few_steps_and_passes_and_too_large_batches_are_warned_of(self, probed):
        probed(made(steps=20, batch=64, samples=200))
        warnings = plan("digits", largest=False, progress=False)["warnings"]
        assert any(w.startswith("20 steps are 6.4 passes") for w in warnings)
        assert any(w.startswith("20 steps are few") for w in warnings) and any("a quarter" in w for w in warnings)
        probed(made(steps=1000, samples=1000))
        assert not any("passes" in w or "few" in w or "quarter" in w
                       for w in plan("digits", largest=False, progress=False)["warnings"])

    def test_arguments_reach_the_probe(self, probed):
        asked = probed(made())
        plan("digits", objective="mae", steps=3, settings={"ratio": 0.5}, init="w", guard="v", seed=4, largest=False,
             progress=False)
        assert {k: asked[0][k] for k in ("source", "objective", "steps", "settings", "init", "guard", "seed")} == {
            "source": "digits", "objective": "mae", "steps": 3, "settings": {"ratio": 0.5}, "init": "w", "guard": "v",
            "seed": 4}

    def test_a_tournament_needs_its_arguments_and_no_others(self):
        with pytest.raises(UsageError, match="labelled data"):
            plan("digits", recipes="simclr", progress=False)
        with pytest.raises(UsageError, match="'steps' is of one run"):
            plan("digits", recipes="simclr", steps=3, train="a", test="b", progress=False)

    def test_the_page_holds_what_a_person_asks_for(self, probed):
        probed(made())
        page = text(plan("digits", memory="4GB", largest=False, progress=False))
        for words in ("about 1 min", "2 GB at the peak", "it fits", "10 FLOP a step", "a note", "passes", "10 classes"):
            assert words in page, words


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    before = os.environ.get("OSTEON_CACHE")
    os.environ["OSTEON_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("OSTEON_CACHE")
    if before is not None:
        os.environ["OSTEON_CACHE"] = before


def test_a_real_plan_leaves_nothing_behind_and_tells_the_truth(cache, tmp_path, monkeypatch, capsys):
    """In the shell: settings, operations and memory of the very run, and no file written here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        cli.main(["plan", "digits", "--objective", "mae", "--steps", "30", "--batch-size", "32", "--set", "limit=200",
                  "--no-largest", "--json", "-q"])
    found = json.loads(capsys.readouterr().out)
    assert leaving.value.code == 0 and list(Path(tmp_path).iterdir()) == []
    assert found["run"]["train"]["steps"] == 30 and found["data"]["samples"] == 200
    flop = found["flop"]
    assert flop["total"] == sum(flop[k] for k in ("forward", "backward", "views", "teachers"))
    assert flop["run"] == 30 * flop["total"] and flop["backward"] > flop["forward"] > flop["views"] > 0
    assert 10**8 < found["memory"]["peak"] < 10**10 and found["time"]["step"] > 0 and found["time"]["total"] < 300
    assert any(note.startswith("lr=") for note in found["notes"])


def test_what_the_run_would_refuse_the_plan_refuses(cache):
    with pytest.raises(UsageError, match="Unknown setting"):
        probe({"source": "digits", "objective": "mae", "backbone": None, "steps": 3, "epochs": None, "batch_size": 8,
               "accumulate": None, "precision": None, "seed": None, "settings": {"nonsense": 1}, "config": None,
               "init": None, "guard": None}, steps=2)



class TestTournament:
    def test_time_of_a_tournament_by_hand(self, monkeypatch):
        """Two recipes, three trials each; one rung at a third of 90 and 30 steps, one finalist.

        a costs 1 s a step and b 2 s. Search: 3 x 30 x 1 + 3 x 10 x 2 = 150 s. The dearer b is taken to go on: two
        seeds of 30 steps less the 10 done: 100 s. Scratch: two seeds of 25 s for each of two networks.
        """
        from types import SimpleNamespace

        from osteon.verbs import _plan_compare
        from osteon.verbs._tournament_budget import Price
        from osteon.verbs._tournament_plan import Allotment

        allotted = {"a": Allotment(90, (), (Price(1.0, 90.0),), 0.0), "b": Allotment(30, (), (Price(1.0, 60.0),), 0.0)}
        scratch = {f"net{n}": (n, Allotment(0, (50,), (Price(1.0, 25.0),), 0.0)) for n in "ab"}
        trials = [{"number": i, "name": f"{r}{i}", "recipe": r, "options": {}} for i, r in enumerate("aaabbb")]
        course = SimpleNamespace(allotted=allotted, scratch=scratch, seeds=2,
                                 plan={"trials": trials, "asked": {"finalists": 1}})
        monkeypatch.setattr(_plan_compare, "rungs", lambda count, finalists, *, steps: [steps // 3])
        monkeypatch.setattr(_plan_compare, "cores", lambda: 2)
        assert _plan_compare._time(course) == {"search": 150.0, "final": 100.0, "scratch": 100.0, "workers": 2,
                                               "total": 175.0}

    def test_the_page_of_a_tournament(self):
        arm = {"name": "simclr", "network": "resnet_tiny", "batch": 64, "steps": 1200, "seconds": 75.0, "flop": 2e9}
        facts = check_data(Dataset.from_arrays(images()))[0]
        page = text({"budget": "2,000 steps", "seeds": 3, "data": facts, "arms": [arm], "notes": ["n"], "warnings": [],
                     "time": {"search": 60, "final": 120, "scratch": 60, "workers": 2, "total": 120}})
        for words in ("2,000 steps", "simclr", "1,200", "1 min 15 s", "about 2 min", "nothing stands out"):
            assert words in page, words
