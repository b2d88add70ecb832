"""Reading clouds of points: folders, manifests and arrays, one number of points for all by stated rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._archive import Rows, load, read_archive
from osteon.data.arrays import _labels
from osteon.data.changes import stamp
from osteon.data.codec import Codec, Plan
from osteon.data.folders import list_folder, walk
from osteon.data.listing import Listing
from osteon.data.tables import list_csv, path_suffixes
from osteon.modalities import Payload, Unreadable
from osteon.modalities.image import SUFFIXES as IMAGES
from osteon.modalities.points import (
    ASKED_SUFFIXES,
    DRAWS,
    FITS,
    MESHES,
    RULES,
    SAMPLES,
    SUFFIXES,
    Header,
    decode,
    measure_clouds,
    read_header,
)
from osteon.modalities.series import choice
from osteon.parts.types import DataSpec

#: Most and fewest points of a cloud without being asked.
USUAL_POINTS, LEAST_POINTS = 1024, 32
#: Classes of the generated source ``shapes``.
SHAPES = ("sphere", "box", "cylinder", "cone", "torus", "planes", "saddle", "helix")
#: Options of ``--set``: points of a cloud, how many further values of a point (-1 = those that all clouds have), which
#: points of more are taken, how meshes are read, whether clouds are put into the unit sphere, and which axis is up.
OPTIONS: dict[str, Any] = {"points": 0, "features": -1, "draw": "random", "mesh": "faces", "fit": "sphere", "up": "z"}


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The clouds at a path, or None when it holds none (an error when clouds were asked for).

    A folder counts as clouds when it holds more of them than images, a manifest when its first file is one, an archive
    when it has an array ``points``. Endings that others use too (.txt, .csv, .npy) count where clouds are asked for.
    """
    known, found, suffix = ASKED_SUFFIXES if asked else SUFFIXES, None, path.suffix.lower()
    if path.is_dir():
        manifest = path / "metadata.csv"
        if manifest.is_file() and path_suffixes(manifest) & known:
            found = list_csv(manifest, source)
        else:
            here = len(walk(path, SUFFIXES).files)
            if here and (asked or here > len(walk(path, IMAGES).files)):
                found = list_folder(path, source, suffixes=SUFFIXES, samples=SAMPLES)
            elif asked:
                found = list_folder(path, source, suffixes=known, samples=SAMPLES)
    elif suffix in (".csv", ".tsv") and path_suffixes(path) & known:
        found = list_csv(path, source)
    elif suffix == ".npz":
        held = read_archive(path, source, "points", asked=asked)
        found = None if held is None else _list_arrays(held, path, source)
    elif suffix == ".npy" and asked:
        found = _list_arrays({"points": load(path, source, mmap_mode="r")}, path, source)
    elif suffix in SUFFIXES:
        found = Listing(source, [path.name], lambda i: path, stamp([path]))
    if found is None and asked:
        raise DataError("The source holds no cloud of points.", where=source, fix="Clouds are a folder of "
                        f"{', '.join(sorted(ASKED_SUFFIXES))} files with a subfolder a class, a csv manifest with "
                        "columns path, label, group, split, or arrays 'points' (N, P, 3 + F) and 'label' in an .npz.")
    return None if found is None else replace(found, modality="points")


def _list_arrays(held: dict[str, np.ndarray], path: Path, source: str) -> Listing:
    clouds = held["points"]
    if not isinstance(clouds, np.ndarray) or clouds.ndim != 3 or clouds.shape[2] < 3 or clouds.dtype.kind not in "iuf":
        raise DataError(f"The points are {getattr(clouds, 'dtype', 'an archive')} {getattr(clouds, 'shape', '')}.",
                        where=source, fix="Points are numbers of shape (N, P, 3 + F).")
    if not clouds.size:
        raise DataError("The array of points is empty.", where=source, fix="Save at least one cloud.")
    names = [str(name) for name in held["class_names"]] if "class_names" in held else None
    for key in held.keys() - {"points", "class_names"}:
        if len(held[key]) != len(clouds):
            raise DataError(f"There are {len(clouds)} clouds but {len(held[key])} entries in '{key}'.", where=source,
                            fix="Save one entry a cloud.")
    labels, names = _labels(held["label"], names, source) if "label" in held else (None, names)
    rows = Rows(clouds)
    texts = {key: [str(v) for v in held[key]] for key in ("group", "split") if key in held}
    return Listing(source, [f"{i:07d}" for i in range(len(clouds))], rows.__getitem__, stamp([path]), labels=labels,
                   class_names=names, groups=texts.get("group"), split=texts.get("split"), encoded=False)


def list_shapes(split: str | None) -> Listing:
    """2,000 generated clouds of 256 points: eight surfaces, stretched, turned anyhow, in part missing, under noise.

    Sphere, box, cylinder, cone, torus, two planes that cross, saddle and helix; each axis is stretched by up to a half,
    up to 40 % of the surface on one side is missing. ``train`` (1,400) and ``test`` (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 2000
    labels = np.arange(count) % len(SHAPES)
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    seeds = rng.integers(2**31, size=count)
    listing = Listing("shapes", [f"shape-{i:04d}" for i in range(count)],
                      lambda i: _shape(int(labels[i]), int(seeds[i])), "shapes-1", labels=[int(v) for v in labels],
                      class_names=list(SHAPES), split=[str(p) for p in parts], cached=False, encoded=False,
                      modality="points")
    return listing.only(split) if split else listing


def _shape(kind: int, seed: int, count: int = 256) -> np.ndarray:
    """One cloud (``count``, 3)."""
    rng = np.random.default_rng(seed)
    points = SURFACES[kind](rng, 2 * count)
    points = points - points.mean(0)
    points = points / np.sqrt((points**2).sum(1).mean()) * (0.67 * 2.25 ** rng.random(3))
    side = _unit(rng, 1)[0]  # what lies farthest to this side is missing
    kept = np.argsort(points @ side)[:round(2 * count * (1 - 0.4 * rng.random()))]
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turn = turn * np.sign(np.linalg.det(turn))
    return points[rng.permutation(kept)[:count]] @ turn.T + 0.06 * rng.standard_normal((count, 3))


def _unit(rng: np.random.Generator, n: int) -> np.ndarray:
    v = rng.standard_normal((n, 3))
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def _ring(turn: np.ndarray, radius: np.ndarray | float, height: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], 1)


def _box(rng: np.random.Generator, n: int) -> np.ndarray:
    points, face = rng.uniform(-1, 1, (n, 3)), rng.integers(3, size=n)
    points[np.arange(n), face] = np.sign(points[np.arange(n), face])
    return points


def _round_body(rng: np.random.Generator, n: int, pointed: bool) -> np.ndarray:
    """A cylinder of radius 1 and height 2 with both ends, or a cone with its base."""
    turn, u = 2 * np.pi * rng.random(n), rng.random(n)
    end = rng.random(n) < (0.31 if pointed else 1 / 3)  # shares of the areas
    height = 2 * np.sqrt(u) - 1 if pointed else 2 * u - 1  # of the side; a cone's is widest at height 1
    radius = (height + 1) / 2 if pointed else np.ones(n)
    ends = np.ones(n) if pointed else np.where(rng.random(n) < 0.5, 1.0, -1.0)
    return _ring(turn, np.where(end, np.sqrt(u), radius), np.where(end, ends, height))


def _torus(rng: np.random.Generator, n: int) -> np.ndarray:
    turn, about = 2 * np.pi * rng.random((2, n))
    return _ring(turn, 1 + 0.4 * np.cos(about), 0.4 * np.sin(about))


def _planes(rng: np.random.Generator, n: int) -> np.ndarray:
    points, which = rng.uniform(-1, 1, (n, 3)), rng.random(n) < 0.5
    points[which, 2] = 0
    points[~which, 1] = 0
    return points


def _saddle(rng: np.random.Generator, n: int) -> np.ndarray:
    x, y = rng.uniform(-1, 1, (2, n))
    return np.stack([x, y, x**2 - y**2], 1)


def _helix(rng: np.random.Generator, n: int) -> np.ndarray:
    along = rng.random(n)
    return _ring(5 * np.pi * along, 1.0, 3 * along) + 0.15 * _unit(rng, n)


#: Surfaces in the order of :data:`SHAPES`: ``draw(generator, n) -> (n, 3)``.
SURFACES: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _unit, _box, lambda rng, n: _round_body(rng, n, False), lambda rng, n: _round_body(rng, n, True), _torus, _planes,
    _saddle, _helix)


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """Points, further values and placing: as in the data the model was trained on, as asked, or by rule."""
    if size is not None:
        raise UsageError("Clouds have no size in pixels.", where="size", fix="Set points instead.")
    if like is not None:
        known = dict(like.traits)
        fit = {"sphere": "in the unit sphere", "keep": "where they are"}[known["fit"]]
        notes = [f"clouds: {known['points']:,} points, {len(known['features'])} further values, {fit} (rule: as in the "
                 "data the model was trained on)"]
        return Plan((3 + len(known["features"]), known["points"]), "float32", known, _lacking(headers, known), notes)
    traits: dict[str, Any] = {"draw": choice(options["draw"], DRAWS, "draw"),
                              "mesh": choice(options["mesh"], MESHES, "mesh"),
                              "fit": choice(options["fit"], FITS, "fit"),
                              "up": choice(options["up"], ("x", "y", "z"), "up")}
    on_faces = {i for i, h in headers.items() if h.mesh and traits["mesh"] == "faces"}
    counts = np.array([USUAL_POINTS if i in on_faces else h.points for i, h in headers.items()])
    usual = 2 ** int(math.log2(max(1.0, float(np.median(counts)))))
    asked = int(options["points"])
    if asked < 0 or (0 < asked < 8):
        raise UsageError(f"Clouds of {asked} points are no clouds.", where="points", fix="Give 8 or more.")
    points = asked or max(LEAST_POINTS, min(usual, USUAL_POINTS))
    how = "as asked" if asked else f"rule: the power of two below the median, at most {USUAL_POINTS:,}"
    notes = [f"points: {points:,} a cloud ({how}; the clouds have {min(h.points for h in headers.values()):,} to "
             f"{max(h.points for h in headers.values()):,}; of more, {traits['draw']} ones are taken)"]
    if on_faces:
        notes.append(f"meshes: {len(on_faces):,} are sampled on their faces (rule: --set mesh=corners takes corners)")
    names = [] if on_faces else list(next(iter(headers.values())).names)
    names = [n for n in names if all(n in h.names for h in headers.values())]
    wanted = int(options["features"])
    if wanted < -1:
        raise UsageError(f"features = {wanted} is not possible.", where="features", fix="Set 0 or more; -1 takes all.")
    if wanted > len(names):
        raise UsageError(f"Not every cloud has {wanted} further values: all have {', '.join(names) or 'none'}.",
                         where="features", fix=f"Set features to 0 to {len(names)}.")
    names = names if wanted < 0 else names[:wanted]
    normals = names[:3] == ["nx", "ny", "nz"] or (len(names) >= 3 and all(h.unit for h in headers.values()))
    every = {n for h in headers.values() for n in h.names}
    if every:
        left_out = sorted(every - set(names))
        notes.append(f"features: {', '.join(names) or 'none'} beside the place ("
                     + ("as asked" if wanted >= 0 else "rule: what all clouds have; meshes on their faces have none")
                     + (f"; left out: {', '.join(left_out)}" if left_out else "")
                     + ("; the first three are normals, which turn with the cloud" if normals else "") + ")")
    notes.append("place: " + ("the mean at 0, the farthest point at distance 1" if traits["fit"] == "sphere" else
                              "as in the files") + f"; up is {traits['up']} (rule: --set fit=, up=)")
    traits |= {"points": points, "features": names, "normals": normals}
    return Plan((3 + len(names), points), "float32", traits, _lacking(headers, traits), notes)


def _lacking(headers: Mapping[int, Header], traits: Mapping[str, Any]) -> dict[int, str]:
    """Clouds that have not what is wanted, and why."""
    lacking = {}
    for i, header in headers.items():
        missing = [n for n in traits["features"] if n not in header.names]
        if missing:
            lacking[i] = f"has no '{missing[0]}', which the others have"
        elif header.mesh and traits["mesh"] == "faces" and traits["features"]:
            lacking[i] = "is a mesh, whose faces have no further values"
    return lacking


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    known = plan.traits
    values = decode(payload, known["points"], tuple(known["features"]), draw=known["draw"], mesh=known["mesh"],
                    fit=known["fit"])
    if not np.isfinite(values).all():
        raise Unreadable("has values beyond the range of 32-bit numbers")
    return values


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"shapes": list_shapes}
CODEC = Codec(read_header, _plan, _convert, measure_clouds, OPTIONS, RULES)
