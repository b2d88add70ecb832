"""Clouds of points: one number of points, one centre and size, pictures, and what costs no training to know of them.

Shape letters: B batch, N samples, P points, F further values of a point. A sample is (3 + F, P), coordinates first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.modalities._base import Control, Payload, Unreadable
from osteon.modalities._cloud_files import Cloud, read_cloud
from osteon.parts.types import DataSpec

#: Files with these endings are taken for clouds, and further ones where clouds are asked for.
SUFFIXES = frozenset((".ply", ".off", ".xyz", ".pts"))
ASKED_SUFFIXES = SUFFIXES | {".txt", ".csv", ".asc", ".npy"}
#: What several samples are called.
SAMPLES = "clouds"
#: How a cloud becomes an array; printed.
RULES = ("a mesh is sampled on its faces, evenly by area (seed 0), a mesh without faces by its corners; points too "
         "many are drawn (seed 0), points too few repeated in turn; colours become 0 to 1")
#: Ways to take fewer points, to read a mesh, and to place a cloud.
DRAWS, MESHES, FITS = ("random", "farthest"), ("faces", "corners"), ("sphere", "keep")
#: Side of a picture in pixels, and from where a cloud is seen: degrees about the up axis, and above the horizon.
SIDE, TURN, TILT = 96, 35.0, 25.0
#: Pairs of points and bins of the shape distribution; cells a side of the occupancy.
PAIRS, BINS, CELLS = 4096, 64, 8


@dataclass(frozen=True)
class Header:
    """What is known of a cloud: points, names of further values, whether it is a mesh.

    ``unit``: columns 4 to 6 are vectors of length 1, so they are normals.
    """

    points: int
    names: tuple[str, ...]
    mesh: bool
    unit: bool


def read_header(payload: Payload) -> Header:
    """Count, columns and kind of a cloud. Raises :class:`Unreadable`."""
    cloud = read_cloud(payload)
    unit = cloud.values.shape[1] >= 3 and bool(
        (np.abs(np.linalg.norm(cloud.values[:, :3], axis=1) - 1) < 0.01).all())
    return Header(len(cloud.points), cloud.names, len(cloud.faces) > 0, unit)


def decode(payload: Payload, count: int, features: tuple[str, ...], *, draw: str = "random", mesh: str = "faces",
           fit: str = "sphere") -> np.ndarray:
    """One cloud as (3 + F, ``count``) float32. Raises :class:`Unreadable`.

    Args:
        payload: a file or an array (n, 3 + F).
        count: points wanted.
        features: names of the further values to keep; none of them of a mesh read by its faces.
        draw: which points of more than ``count``: ``random`` with a fixed seed, or ``farthest`` from each other.
        mesh: read a mesh by its ``faces`` or by its ``corners``.
        fit: ``sphere``: the mean of the points is at 0 and the farthest of them at distance 1; ``keep``: as they are.
    """
    cloud = read_cloud(payload)
    missing = [name for name in features if name not in cloud.names]
    if missing:
        raise Unreadable(f"has no '{missing[0]}'")
    if len(cloud.faces) and mesh == "faces":
        points = sample_faces(cloud, count)
        if features:
            raise Unreadable(f"is a mesh, whose faces have no '{features[0]}'")
    else:
        values = cloud.values[:, [cloud.names.index(name) for name in features]]
        points = fit_count(np.concatenate([cloud.points, values], 1), count, draw)
    if fit == "sphere":
        points[:, :3] = to_sphere(points[:, :3])
    return np.ascontiguousarray(points.T, np.float32)


def sample_faces(cloud: Cloud, count: int, seed: int = 0) -> np.ndarray:
    """Points drawn evenly by area on the triangles of a mesh, (``count``, 3); its corners where it has no area.

    Within a triangle by the square root of one uniform number and another (Osada et al. 2002, section 3.2).
    """
    corner = cloud.points[cloud.faces]  # (m, 3 corners, 3)
    area = np.linalg.norm(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]), axis=1)
    if not area.sum() > 0:
        return fit_count(cloud.points, count)
    rng = np.random.default_rng(seed)
    face = corner[rng.choice(len(area), count, p=area / area.sum())]
    root, along = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    return (1 - root) * face[:, 0] + root * (1 - along) * face[:, 1] + root * along * face[:, 2]


def fit_count(points: np.ndarray, count: int, draw: str = "random") -> np.ndarray:
    """Rows (n, C) as (``count``, C): too few are repeated in turn, of too many some are chosen; order is kept."""
    have = len(points)
    if have <= count:
        return np.array(points[np.arange(count) % have])
    if draw == "farthest":
        return np.array(points[np.sort(_farthest(points[:, :3], count))])
    return np.array(points[np.sort(np.random.default_rng(0).permutation(have)[:count])])


def _farthest(points: np.ndarray, count: int) -> np.ndarray:
    chosen, far = np.zeros(count, np.int64), np.full(len(points), np.inf)
    for i in range(1, count):
        far = np.minimum(far, ((points - points[chosen[i - 1]]) ** 2).sum(1))
        chosen[i] = far.argmax()
    return chosen


def to_sphere(points: np.ndarray) -> np.ndarray:
    """Points (P, 3) with mean 0, the farthest at distance 1. Raises `Unreadable` where all points are one."""
    centred = points - points.mean(0)
    radius = np.sqrt((centred**2).sum(1).max())
    if not radius > 1e-12 * max(1.0, float(np.abs(points).max())):
        raise Unreadable("has all its points at one place")
    return centred / radius


def measure_clouds(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Mean and deviation of each channel of (N, 3 + F, P); the coordinates have one deviation, so that shapes stay.

    That of the coordinates is the root mean square over clouds of the farthest point's distance from the mean: 1 of
    clouds in the unit sphere, which networks therefore see as they are.
    """
    total, square, radius = np.zeros(samples.shape[1]), np.zeros(samples.shape[1]), 0.0
    for start in range(0, len(samples), 1024):
        total += samples[start:start + 1024].mean(2, dtype=np.float64).sum(0)
    mean = total / len(samples)
    for start in range(0, len(samples), 1024):
        apart = samples[start:start + 1024] - mean[:, None]
        square += (apart**2).mean(2).sum(0)
        radius += float((apart[:, :3] ** 2).sum(1).max(1).sum())
    std = np.sqrt(square / len(samples))
    std[:3] = np.sqrt(radius / len(samples))
    return tuple(float(v) for v in mean), tuple(float(v) for v in std), 1.0


def shape_distribution(samples: np.ndarray) -> np.ndarray:
    """Histogram of distances between random pairs of points (D2), (N, C, P) -> (N, BINS).

    Osada et al. 2002, "Shape distributions", section 3: distances over their mean, bins up to three times it; the
    pairs are the same ones of every cloud.
    """
    first, second = np.random.default_rng(0).integers(samples.shape[2], size=(2, PAIRS))
    out = np.empty((len(samples), BINS), np.float32)
    for i, cloud in enumerate(samples):
        apart = np.sqrt(((cloud[:3, first].astype(np.float64) - cloud[:3, second]) ** 2).sum(0))
        scaled = np.minimum(apart / max(float(apart.mean()), 1e-12) / 3 * BINS, BINS - 1)
        out[i] = np.bincount(scaled.astype(np.int64), minlength=BINS) / PAIRS
    return out


def moments(samples: np.ndarray) -> np.ndarray:
    """Spread and shape along the principal axes, of distances from the centre, and of further channels; (N, 16 + 2 F).

    Square roots of the eigenvalues of the covariance, falling, and their ratios; third (without sign) and fourth
    standardised moments along each axis; mean, deviation, least and largest distance from the mean.
    """
    points = samples[:, :3].astype(np.float64)
    points = points - points.mean(2, keepdims=True)
    values, axes = np.linalg.eigh(points @ points.transpose(0, 2, 1) / points.shape[2])
    spread = np.sqrt(np.maximum(values[:, ::-1], 0))
    along = axes[:, :, ::-1].transpose(0, 2, 1) @ points
    unit = along / np.maximum(spread[:, :, None], 1e-9)
    radius = np.sqrt((points**2).sum(1))
    ratios = spread[:, [1, 2, 2]] / np.maximum(spread[:, [0, 0, 1]], 1e-9)
    parts = [spread, ratios, np.abs((unit**3).mean(2)), (unit**4).mean(2), radius.mean(1)[:, None],
             radius.std(1)[:, None], radius.min(1)[:, None], radius.max(1)[:, None]]
    further = samples[:, 3:].astype(np.float64)
    return np.concatenate([*parts, further.mean(2), further.std(2)], 1).astype(np.float32)


def occupancy(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Share of a cloud's points in each of 8 x 8 x 8 cells of the cube that holds the training clouds, (N, 512)."""
    low, high = train[:, :3].min((0, 2)), train[:, :3].max((0, 2))
    side = max(float((high - low).max()), 1e-12) / CELLS
    corner = ((low + high) / 2 - side * CELLS / 2)[:, None]

    def one(samples: np.ndarray) -> np.ndarray:
        out = np.empty((len(samples), CELLS**3), np.float32)
        for i, cloud in enumerate(samples):
            cell = np.clip((cloud[:3] - corner) / side, 0, CELLS - 1).astype(np.int64)
            out[i] = np.bincount((cell[0] * CELLS + cell[1]) * CELLS + cell[2], minlength=CELLS**3) / cloud.shape[1]
        return out

    return one(train), one(test)


def _apart(reader: Any) -> Control:
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        return reader(np.asarray(train)), reader(np.asarray(test))

    return both


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"shape distribution": _apart(shape_distribution), "moments": _apart(moments),
                                "voxel occupancy": occupancy}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A Transformer of clouds reads groups of near points."""
    return {"stem": "points"}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Clouds seen from one side above, without perspective, near points dark: (B, 3 + F, P) -> (B, 96, 96, 3) uint8."""
    range_of = (values if like is None else like)[:, :3].astype(np.float64)
    centre = range_of.mean(2, keepdims=True)
    reach = np.sqrt(((range_of - centre) ** 2).sum(1)).max() or 1.0
    if len(centre) != len(values):
        centre = centre.mean(0, keepdims=True)
    across, up, depth = np.moveaxis(_view(str(spec.traits.get("up", "z"))) @ (values[:, :3] - centre), 1, 0) / reach
    column, row = (np.clip((0.5 + 0.46 * v) * SIDE, 1, SIDE - 2).astype(np.int64) for v in (across, -up))
    near, far = np.array([20, 40, 110.0]), np.array([190, 210, 235.0])
    shade = np.clip((1 - depth) / 2, 0, 1)[..., None]
    colour = (near + (far - near) * shade).astype(np.uint8)
    out = np.full((len(values), SIDE, SIDE, 3), 255, np.uint8)
    for i in range(len(values)):
        order = np.argsort(depth[i], kind="stable")  # far points first: what is drawn later covers them
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                out[i, row[i, order] + down, column[i, order] + right] = colour[i, order]
    return out


def _view(up: str) -> np.ndarray:
    """Rows: to the right, upwards and towards the eye, as unit vectors of the data's axes, (3, 3)."""
    turn, tilt = np.deg2rad([TURN, TILT])
    eye = np.array([np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)])
    right = np.array([-np.sin(turn), np.cos(turn), 0.0])
    rows = np.stack([right, np.cross(eye, right), eye])
    return np.roll(rows, "xyz".index(up) - 2, axis=1)  # a cyclic change of axes keeps the handedness
