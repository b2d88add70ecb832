"""The analysis of ``osteon analyse`` that is about graphs: do those a run was pre-trained on suit others."""

from __future__ import annotations

import numpy as np

from osteon.data import Dataset, open_source
from osteon.evaluators import w2pgnn
from osteon.verbs._analysis_context import Context, Finding, Section

#: most graphs on either side
GRAPHS = 500


def sources(c: Context) -> Section:
    """Whether the graphs a run was pre-trained on suit these."""
    out = Section("feasibility", "Do the pre-training graphs suit these?")
    made, origin = c.model.spec, c.model.meta.get("source")
    if made.modality != "graph" or origin is None:
        out.skipped = "compares graphs with those a run was pre-trained on"
        return out
    rng = np.random.default_rng(c.seed)
    sides = [_adjacencies(data, rng) for data in (open_source(origin, like=made), c.data)]
    found = w2pgnn.feasibility(sides[0], sides[1], seed=c.seed)
    out.findings = [
        Finding("feasibility: minus the distance of the best mixture of source graphons", found.score, None,
                "0 is a perfect fit; compare sources for one target at one resolution", "W2PGNN (2023)"),
        Finding("the same of their plain mean", found.plain, None, "at most the above", "W2PGNN (2023)")]
    out.columns = ["Group of source graphs", "Graphs", "Weight in the mixture"]
    out.rows = [[i + 1, n, f"{w:.3f}"] for i, (n, w) in enumerate(zip(found.sizes, found.weights, strict=True))]
    out.notes.append(f"{len(sides[0])} graphs of {origin} and {len(sides[1])} of these; features of nodes play no part")
    return out


def _adjacencies(data: Dataset, rng: np.random.Generator) -> list[np.ndarray]:
    """Adjacencies of at most :data:`GRAPHS` samples, without nodes that only fill them up."""
    rows = np.sort(rng.permutation(len(data))[:GRAPHS])
    squares = data.batch(rows)["graph"].numpy()[:, int(data.spec.traits["features"]):].astype(np.float32)
    there = [np.diag(s) > 0 for s in squares]
    return [s[t][:, t] for s, t in zip(squares, there, strict=True)]
