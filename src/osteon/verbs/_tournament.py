"""The course of a tournament: prices, halving, the final, the exam. It decides; the jobs only measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import MonitorStop
from osteon.modalities import find
from osteon.report.numbers import percent, seconds
from osteon.verbs._arms import Arm, labelled_controls
from osteon.verbs._tournament_ahead import Ahead
from osteon.verbs._tournament_budget import TOLERANCE, Budget, off_by
from osteon.verbs._tournament_engine import Engine, Job, result
from osteon.verbs._tournament_final import SCRATCH
from osteon.verbs._tournament_jobs import ground, trained_arm
from osteon.verbs._tournament_kit import load_arms
from osteon.verbs._tournament_plan import Allotment, allot, allot_scratch, searched
from osteon.verbs._tournament_study import Study, Trial, rungs, survivors


@dataclass
class Stretch:
    """One job of pre-training: from a step to a step."""

    job: str
    start: int
    stop: int


@dataclass
class Entrant:
    """One recipe in the final, or the same on the labelled images alone.

    Args:
        source: its name in tables.
        kind: ``"pretrained"`` or ``"control"``.
        trial: number of the trial.
        run: stem of its runs.
        recipe: whose network and settings it has.
        options: the searched options it runs with.
    """

    source: str
    kind: str
    trial: int
    run: str
    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Tournament:
    """Runs a plan to its end; every step of it can be repeated without changing anything.

    Args:
        root: folder of the tournament.
        plan: what :func:`osteon.verbs._tournament_plan.make_plan` wrote.
        engine: who does the jobs.
        say: told what goes on.
    """

    def __init__(self, root: Path, plan: Mapping[str, Any], engine: Engine, say: Callable[[str], None]) -> None:
        self.root, self.plan, self.engine, self.say = root, plan, engine, say
        self.budget = Budget(**plan["asked"]["budget"])
        self.seeds = int(plan["asked"]["seeds"])
        self.labels = list(plan["asked"]["label_budget"])
        self.crashed: list[dict[str, Any]] = []
        self.known: dict[str, dict[str, Any]] = {}
        self.allotted: dict[str, Allotment] = {}
        self.scratch: dict[str, tuple[str, Allotment]] = {}
        self.stretches: dict[tuple[int, int], list[Stretch]] = {}
        self.halving: list[dict[str, Any]] = []
        self._done = 0

    # -- jobs ------------------------------------------------------------------------------------------------------

    def do(self, title: str, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Have jobs done; their results by name. Failures are told and kept for the report."""
        self._done = 0

        def told(job: Job) -> None:
            self._done += 1
            outcome = result(self.root, job.name)
            text = f"FAILED: {outcome['error']['what'].splitlines()[0]}" if "error" in outcome else (
                seconds(outcome["wall_s"]) if "wall_s" in outcome else "done")
            self.say(f"{title}: {job.name} ({self._done}/{len(jobs)}, {text})")

        self.engine.map(jobs, told)
        found = {job.name: result(self.root, job.name) for job in jobs}
        for name, outcome in found.items():
            if "error" in outcome:
                self.crashed.append({"arm": name, **outcome["error"]})
        return found

    # -- prices ----------------------------------------------------------------------------------------------------

    def price(self) -> None:
        """Measure what a step of each recipe costs and fix, once and for all, how many steps each arm takes."""
        names = [r["name"] for r in self.plan["recipes"]]
        probes = self.do("price", [Job(f"probe-{n}", "probe", {"recipe": n}) for n in names])
        self.known = {n: probes[f"probe-{n}"] for n in names if "error" not in probes[f"probe-{n}"]}
        self._need(self.known)
        judged = ground(self.root).judged
        for name, known in self.known.items():
            self.allotted[name] = allot(self.budget, known, read=judged.reading, fine_tune=self.plan["fine_tune"],
                                         what=name)
            label = self._network(name)
            if label not in self.scratch:
                self.scratch[label] = (name, allot_scratch(self.budget, known, read=judged.scoring,
                                                           what=f"training {label} from scratch"))
            cost = known["shares"]
            self.say(f"{name}: {known['backbone']['name']}, batch {known['batch_size']}, "
                     f"{self.allotted[name].steps:,} steps of {cost['total']:.2e} FLOP (forward "
                     f"{percent(cost['forward'] / cost['total'], 0)}, backward "
                     f"{percent(cost['backward'] / cost['total'], 0)}, views "
                     f"{percent(cost['views'] / cost['total'], 0)}, teachers "
                     f"{percent(cost['teachers'] / cost['total'], 0)}) and {seconds(known['step']['seconds'])}")

    def _network(self, recipe: str) -> str:
        """What a recipe's network is called: its backbone, told apart where options differ."""
        made = self.known[recipe]["backbone"]
        for label, (other, _) in self.scratch.items():
            if self.known[other]["backbone"] == made:
                return label
        taken = any(self.known[other]["backbone"]["name"] == made["name"] for other, _ in self.scratch.values())
        return f"{made['name']} ({recipe}'s)" if taken else str(made["name"])

    def _need(self, some: Any) -> None:
        if not some:
            text = "; ".join(f"{c['arm']}: {c['what']}" for c in self.crashed)
            raise MonitorStop(f"Every arm failed. {text}", where=str(self.root),
                              fix="Correct what they say and choose another --out, or delete the failed jobs' files "
                                  "in its folder jobs/ and run again.")

    # -- pre-training ----------------------------------------------------------------------------------------------

    def stretch(self, trial: int, recipe: str, name: str, seed: int, stop: int) -> Job:
        """The job that takes a trial from where it stands to a step of its schedule."""
        steps = self.allotted[recipe].steps
        before = self.stretches.setdefault((trial, seed), [])
        start = before[-1].stop if before else 0
        final = stop == steps
        job = Job(f"pretrain-{name}-s{seed}-{stop}", "advance",
                  {"trial": trial, "seed": seed, "until": stop, "steps": steps, "final": final})
        before.append(Stretch(job.name, start, stop))
        return job

    def search(self) -> list[Trial]:
        """Halve the trials on seed 0 by their validation scores; return those that reach the final."""
        live = [t for t in searched(self.plan) if t.recipe in self.allotted]
        study = Study(self.root, searched(self.plan))
        finalists = min(int(self.plan["asked"]["finalists"]), len({t.recipe for t in live}))
        places = {t.recipe: rungs(len(live), finalists, steps=self.allotted[t.recipe].steps) for t in live}
        count = max((len(p) for p in places.values()), default=0)
        study.report(0, {t.number: None for t in searched(self.plan) if t.recipe not in self.allotted})
        for rung in range(count):
            jobs = {t.number: self.stretch(t.number, t.recipe, t.name, 0, places[t.recipe][rung]) for t in live}
            found = self.do(f"rung {rung + 1} of {count}", list(jobs.values()))
            scores = {t.number: found[jobs[t.number].name].get("score") for t in live}
            study.report(rung, scores)
            decided = study.scores(rung)
            kept = survivors(live, decided, finalists=finalists, last=rung == count - 1)
            out = [t for t in live if t not in kept]
            study.end([t for t in out if t.number in decided])
            self.halving += [{"rung": rung + 1, "trial": t.name, "recipe": t.recipe, "options": dict(t.options),
                              "step": places[t.recipe][rung], "score": decided.get(t.number), "kept": t in kept}
                             for t in live]
            live = kept
            self._need(live)
            self.say(f"rung {rung + 1}: {', '.join(t.name for t in live)} go on")
        self.study = study
        return live

    def final(self, finalists: Sequence[Trial]) -> list[Entrant]:
        """Run the finalists and what they meet to the end on all seeds; return those that got there."""
        entrants = [Entrant(t.recipe, "pretrained", t.number, t.name, t.recipe, t.options) for t in finalists]
        entrants += [Entrant(f"{t['recipe']} on --train", "control", t["number"], t["name"], t["recipe"])
                     for t in self.plan["trials"] if "source" in t and t["recipe"] in self.allotted]
        jobs = [self.stretch(e.trial, e.recipe, e.run, seed, self.allotted[e.recipe].steps)
                for seed in range(self.seeds) for e in entrants]
        found = self.do("final", [*jobs, *self._scratch_jobs()])
        alive = [e for e in entrants if all("error" not in found[self.stretches[e.trial, s][-1].job]
                                            for s in range(self.seeds))]
        self.study.report(len(self.halving), {e.trial: None for e in entrants if e not in alive})
        self._need([e for e in alive if e.kind == "pretrained"])
        self.study.end([], won={e.trial: float(np.mean([found[self.stretches[e.trial, s][-1].job]["score"]
                                                        for s in range(self.seeds)])) for e in alive})
        return alive

    def _scratch_jobs(self) -> list[Job]:
        return [Job(self._scratch_name(i, b, seed), "supervise",
                    {"name": self._scratch_name(i, b, seed), "budget": b, "seed": seed, "steps": plan.supervised[b],
                     "recipe": recipe, "run": None})
                for seed in range(self.seeds) for b in range(len(self.labels))
                for i, (recipe, plan) in enumerate(self.scratch.values())]

    def _scratch_name(self, network: int, budget: int, seed: int) -> str:
        recipe = list(self.scratch.values())[network][0]
        return f"scratch-{recipe}-{self.labels[budget]}-s{seed}"

    # -- the exam --------------------------------------------------------------------------------------------------

    def exam(self, entrants: Sequence[Entrant]) -> list[Arm]:
        """Score everything on the test part, from which nothing is chosen any more; return every arm."""
        jobs = [Job(f"exam-{e.run}", "exam", {"name": f"exam-{e.run}", "kind": e.kind, "source": e.source, "features":
                                              [f"{e.run}-s{s}" for s in range(self.seeds)]}) for e in entrants]
        known = find(self.plan["modality"])
        judged = ground(self.root).judged
        controls = {**(judged.controls if isinstance(judged, Ahead) else
                       {**{name: name for name in known.CONTROLS},
                        **{name: f"labelled:{name}" for name in labelled_controls(known, judged)}}),
                    **{f"untrained {label}": f"untrained:{recipe}" for label, (recipe, _) in self.scratch.items()},
                    **{f"{Path(p).name if Path(p).exists() else p} (public)": f"public:{p}"
                       for p in self.plan["asked"]["public"]}}
        for i, (source, features) in enumerate(controls.items()):
            jobs.append(Job(f"exam-control-{i}", "exam", {"name": f"exam-control-{i}", "kind": "control",
                                                          "source": source, "features": [features]}))
        tuned = [Job(self._tuned_name(e, b, s), "supervise", {
            "name": self._tuned_name(e, b, s), "budget": b, "seed": s, "steps": self.allotted[e.recipe].supervised[b],
            "recipe": e.recipe, "run": f"{e.run}-s{s}"})
            for e in entrants if self.plan["fine_tune"] for b in range(len(self.labels)) for s in range(self.seeds)]
        self.exams = self.do("exam", [*tuned, *jobs])
        arms = [arm for job in jobs if "error" not in self.exams[job.name]
                for arm in load_arms(self.root / "scores" / f"{job.name}.npz", self.exams[job.name]["arms"])]
        arms += self._trained(entrants)
        for kind in ("pretrained", "control"):
            self._need([a for a in arms if a.kind == kind])
        return arms

    def _tuned_name(self, entrant: Entrant, budget: int, seed: int) -> str:
        return f"tuned-{entrant.run}-{self.labels[budget]}-s{seed}"

    def _trained(self, entrants: Sequence[Entrant]) -> list[Arm]:
        """Arms whose networks were trained on labels: fine-tuned, and from scratch."""
        judged = ground(self.root).judged
        groups: list[tuple[str, str, str, str, int, list[str]]] = []
        for b in range(len(self.labels)):
            if self.plan["fine_tune"]:
                groups += [(f"{e.source} + fine-tuned", e.kind, e.source, "fine-tuned", b,
                            [self._tuned_name(e, b, s) for s in range(self.seeds)]) for e in entrants]
            groups += [(f"{label} from scratch", "control", f"{label} from scratch", SCRATCH, b,
                        [self._scratch_name(i, b, s) for s in range(self.seeds)])
                       for i, label in enumerate(self.scratch)]
        failed = {g[2] for g in groups if any("error" in result(self.root, name) for name in g[5])}
        return [trained_arm(self.root, *group, judged) for group in groups if group[2] not in failed]

    # -- what it cost ----------------------------------------------------------------------------------------------

    def costs(self, entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
        """Steps, operations and times of every arm, a seed, with what was planned; departures are told in words."""
        rows = [self._cost(e) for e in entrants]
        for i, (label, (recipe, plan)) in enumerate(self.scratch.items()):
            rows.append(self._scratch_cost(f"{label} from scratch", i, recipe, plan))
        return rows

    def _cost(self, e: Entrant) -> dict[str, Any]:
        plan, known = self.allotted[e.recipe], self.known[e.recipe]
        wall = cpu = 0.0
        for seed in range(self.seeds):
            for s in self.stretches[e.trial, seed]:
                got = result(self.root, s.job)
                # A stretch that was killed and resumed is timed by its last part, or by the price of its steps.
                factor = (s.stop - s.start) / got["done_here"] if got["done_here"] else 0.0
                lost = 0.0 if got["done_here"] else (s.stop - s.start) * known["step"]["seconds"]
                wall += got["wall_s"] * factor + lost + got["read_s"]
                cpu += got["cpu_s"] * factor + lost + got["read_s"]
        tuned = [result(self.root, self._tuned_name(e, len(self.labels) - 1, s)) for s in range(self.seeds)
                 if self.plan["fine_tune"]]
        wall += sum(t.get("train_s", 0.0) for t in tuned)
        cpu += sum(t.get("cpu_s", 0.0) for t in tuned)
        steps = plan.steps + sum(plan.supervised[-1:])
        return self._row(e.source, e.kind, plan, wall / self.seeds, cpu / self.seeds, steps,
                         network=self._label(e.recipe), parameters=known["parameters"], shares=known["shares"],
                         options=dict(e.options), batch_size=known["batch_size"], pretraining=plan.steps)

    def _scratch_cost(self, name: str, network: int, recipe: str, plan: Allotment) -> dict[str, Any]:
        last = len(self.labels) - 1
        got = [result(self.root, self._scratch_name(network, last, s)) for s in range(self.seeds)]
        good = [g for g in got if "error" not in g]
        return self._row(name, "control", plan, float(np.mean([g["wall_s"] for g in good] or [0.0])),
                         float(np.mean([g["cpu_s"] for g in good] or [0.0])), plan.supervised[-1],
                         network=self._label(recipe), parameters=self.known[recipe]["parameters"], shares={},
                         options={}, batch_size=self.known[recipe]["supervised"][-1]["batch"], pretraining=0)

    def _label(self, recipe: str) -> str:
        made = self.known[recipe]["backbone"]
        return next(label for label, (other, _) in self.scratch.items() if self.known[other]["backbone"] == made)

    def _row(self, name: str, kind: str, plan: Allotment, wall: float, cpu: float, steps: int,
             **more: Any) -> dict[str, Any]:
        price = plan.price[-1]
        spent = {"seconds": wall, "flop": price.flop, "steps": float(steps)}[self.budget.unit]
        off = off_by(self.budget, spent)
        return {"name": name, "kind": kind, "budget": str(self.budget), "steps": steps, "flop": price.flop,
                "wall_s": wall, "cpu_s": cpu, "planned_s": price.seconds, "planned_off": plan.off, "off": off,
                "flag": f"{abs(off):.0%} {'over' if off > 0 else 'under'} the budget of {self.budget}"
                if abs(off) > TOLERANCE else "", **more}

    def search_cost(self, finalists: Sequence[int]) -> dict[str, float]:
        """What halving spent on trials that did not reach the final."""
        flop = wall = 0.0
        for (trial, _), parts in self.stretches.items():
            entry = self.plan["trials"][trial]
            if trial in finalists or "source" in entry:
                continue
            for s in parts:
                got = result(self.root, s.job)
                flop += (s.stop - s.start) * self.known[entry["recipe"]]["step"]["flop"]
                wall += float(got.get("wall_s", 0.0))
        return {"flop": flop, "wall_s": wall}
