"""Clouds: readers by hand-made files, what is said of damaged ones, sampling, placing, controls and pictures."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from osteon.modalities import Unreadable
from osteon.modalities import points as po
from osteon.modalities._cloud_files import read_cloud
from osteon.parts.types import DataSpec

#: four corners of a tetrahedron
CORNERS = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
ASCII = """ply
format ascii 1.0
comment made by hand
element vertex 4
property float x
property float y
property float z
property uchar red
property float ny
element face 1
property list uchar int vertex_indices
end_header
0 0 0 255 0
1 0 0 0 0.5
0 1 0 51 0
0 0 1 0 0
4 0 1 2 3
"""


def spec(count: int = 8, **traits: object) -> DataSpec:
    return DataSpec("points", 3, count, (0.0,) * 3, (1.0,) * 3, 1.0, shape=(count,), traits=traits)


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def binary_ply(order: str, faces: bool = True, claim: int = 4) -> bytes:
    mark = {"<": "little", ">": "big"}[order]
    head = (f"ply\nformat binary_{mark}_endian 1.0\nelement vertex {claim}\nproperty double x\nproperty float y\n"
            "property float z\nproperty ushort intensity\n"
            + ("element face 2\nproperty uchar flag\nproperty list uchar int vertex_index\n" if faces else "")
            + "end_header\n").encode()
    body = b"".join(struct.pack(order + "dffH", *p, 65535 * i // 3) for i, p in enumerate(CORNERS))
    lists = struct.pack(order + "BB3i", 7, 3, 0, 1, 2) + struct.pack(order + "BB4i", 7, 4, 0, 1, 2, 3)
    return head + body + (lists if faces else b"")


def test_ply_as_text(tmp_path):
    cloud = read_cloud(write(tmp_path, "a.ply", ASCII))
    np.testing.assert_array_equal(cloud.points, CORNERS)
    assert cloud.names == ("ny", "red")
    np.testing.assert_allclose(cloud.values, [[0, 1], [0.5, 0], [0, 0.2], [0, 0]])
    assert cloud.faces.tolist() == [[0, 1, 2], [0, 2, 3]]  # a square is two triangles about its first corner
    windows = read_cloud(write(tmp_path, "b.ply", ASCII.replace("\n", "\r\n")))
    np.testing.assert_array_equal(windows.points, CORNERS)


@pytest.mark.parametrize("order", ["<", ">"])
def test_ply_as_bytes_of_either_order(tmp_path, order):
    cloud = read_cloud(write(tmp_path, "a.ply", binary_ply(order)))
    np.testing.assert_array_equal(cloud.points, CORNERS)
    np.testing.assert_allclose(cloud.values[:, 0], [0, 1 / 3, 2 / 3, 1])
    assert cloud.names == ("intensity",) and cloud.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    assert not len(read_cloud(write(tmp_path, "b.ply", binary_ply(order, faces=False))).faces)


def test_off_with_counts_on_either_line_colours_and_comments(tmp_path):
    body = "0 0 0\n1 0 0 # a corner\n0 1 0\n0 0 1\n3 0 1 2\n4 0 1 2 3\n"
    for head in ("OFF\n4 2 0\n", "OFF4 2 0\n", "# by hand\nOFF 4 2\n"):
        cloud = read_cloud(write(tmp_path, "a.off", head + body))
        np.testing.assert_array_equal(cloud.points, CORNERS)
        assert cloud.faces.tolist() == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    cloud = read_cloud(write(tmp_path, "c.off", "COFF\n1 0 0\n1 2 3 255 0 0 255\n"))
    assert cloud.points.tolist() == [[1, 2, 3]] and not len(cloud.faces)


@pytest.mark.parametrize(("name", "text"), [
    ("a.xyz", "1 2 3 4\n5 6 7 8\n"), ("a.txt", "1,2,3,4\n5,6,7,8"), ("a.csv", "x,y,z,echo\n1,2,3,4\n5;6;7;8\n"),
    ("a.pts", "2\n1 2 3 4\n5 6 7 8\n"), ("a.asc", "# made\n1\t2\t3\t4\n\n5 6 7 8\n")])
def test_rows_of_numbers(tmp_path, name, text):
    cloud = read_cloud(write(tmp_path, name, text))
    assert cloud.points.tolist() == [[1, 2, 3], [5, 6, 7]] and cloud.values.tolist() == [[4], [8]]
    assert cloud.names == ("column 4",)


def test_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8, dtype=np.int16).reshape(2, 4))
    assert read_cloud(tmp_path / "a.npy").points.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert read_cloud(np.ones((5, 3), np.float32)).values.shape == (5, 0)


def damaged() -> list[tuple[str, bytes | str, str]]:
    claims = ASCII.replace("vertex 4", "vertex 4000000000")
    mesh = "OFF\n4 1 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n"
    return [
        ("a.xyz", "", "empty"), ("b.xyz", "# nothing\n", "no row of numbers"),
        ("c.xyz", "1 2\n3 4\n", "2 numbers a row"), ("d.xyz", "1 2 3\n4 5\n", "2 numbers in row 2, 3 are needed"),
        ("e.xyz", "1 2 3\n4 five 6\n", "'five' in row 2"),
        ("f.xyz", "1 2 3\nnan 5 6\n", "NaN or infinity"), ("g.xyz", "1 2 inf\n", "NaN or infinity"),
        ("h.pts", "3\n1 2 3\n4 5 6\n", "claims 3 points and holds 2"), ("i.xyz", b"\xff\xfe\x00", "no text of numbers"),
        ("j.xyz", "x y z\n", "no row of numbers"), ("k.xyz", "1 2 3 4\n1 2 3 nan\n", "NaN"),
        ("l.xyz", "1e300 0 0\n0 0 0\n", "beyond 1e30"),
        ("a.off", "OOF\n", "begin with OFF"), ("b.off", "OFF\nfour\n", "no counts"),
        ("c.off", "OFF\n4000000000 0 0\n0 0 0\n", "claims 4,000,000,000 points"), ("d.off", "OFF\n0 0 0\n", "no point"),
        ("e.off", mesh + "3 0 1 4\n", "names point 4 of 4"), ("f.off", mesh + "9 0 1\n", "corners in row 7"),
        ("g.off", "OFF\n1 0 0\n1 2\n", "2 numbers in row 3"),
        ("a.ply", "plain\n", "no PLY header"), ("b.ply", claims, "claims 4,000,000,000 of vertex"),
        ("c.ply", binary_ply("<", claim=2**40), "claims 1,099,511,627,776 of vertex"),
        ("d.ply", binary_ply("<")[:-6], "ends within its list of face"), ("e.ply", binary_ply("<")[:-60], "claims"),
        ("f.ply", ASCII.replace("float y", "float why"), "without x, y and z"),
        ("g.ply", ASCII.replace("ascii", "utf8"), "without a known format"),
        ("h.ply", ASCII.replace("property uchar red", "property colour red"), "with 'property colour red'"),
        ("i.ply", ASCII.replace("0 1 0 51 0", "0 1 0"), "3 numbers in row 3, 5 are needed"),
        ("j.ply", ASCII.replace("element vertex 4", "element point 4"), "no element vertex"),
        ("k.ply", ASCII.replace("4 0 1 2 3", "4 0 1 2 -3"), "corners in row 5"),
        ("a.npy", b"\x93NUMPY nothing", "cannot be read"),
    ]


@pytest.mark.parametrize(("name", "content", "reason"), damaged())
def test_damaged_files_say_why(tmp_path, name, content, reason):
    with pytest.raises(Unreadable, match=reason):
        po.read_header(write(tmp_path, name, content))


def test_arrays_that_are_no_clouds_and_files_that_are_none(tmp_path):
    for name, array, reason in (("a", np.zeros((2, 2)), "no array of points"), ("b", np.zeros(6), "no array of points"),
                                ("c", np.zeros((0, 3)), "no point"), ("d", np.full((2, 3), np.nan), "NaN"),
                                ("e", np.array([["a", "b", "c"]]), "no array of points")):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(Unreadable, match=reason):
            po.read_header(tmp_path / f"{name}.npy")
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(whole.replace(b"(2, 2)", b"(9, 3)"))
    with pytest.raises(Unreadable, match="cannot be read"):  # claims more than it holds
        po.read_header(tmp_path / "f.npy")
    for path, reason in ((tmp_path / "none.ply", "not found"), (tmp_path, "regular file")):
        with pytest.raises(Unreadable, match=reason):
            po.read_header(path)


def test_normals_are_known_by_their_length():
    turn = np.linspace(0, 6, 10)
    normals = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    assert po.read_header(np.concatenate([2 * normals, normals], 1)).unit
    assert not po.read_header(np.concatenate([normals, 2 * normals], 1)).unit
    assert not po.read_header(normals).unit


def test_counts_are_reached_by_repeating_or_by_a_fixed_choice():
    few = np.arange(9.0).reshape(3, 3)
    assert po.fit_count(few, 7)[:, 0].tolist() == [0, 3, 6, 0, 3, 6, 0]
    many = np.arange(300.0).reshape(100, 3)
    chosen = po.fit_count(many, 10)
    assert len(np.unique(chosen[:, 0])) == 10 and (np.diff(chosen[:, 0]) > 0).all()
    np.testing.assert_array_equal(po.fit_count(many, 10), chosen)
    line = np.zeros((6, 3))
    line[:, 0] = [0, 1, 2, 3, 4, 10]
    assert po.fit_count(line, 3, "farthest")[:, 0].tolist() == [0, 4, 10]
    assert po.fit_count(few, 3) is not few


def test_clouds_are_placed_in_the_unit_sphere_and_scale_can_be_kept():
    cloud = np.array([[1.0, 1, 1], [3, 1, 1], [1, 5, 1], [1, 1, 1]])
    got = po.decode(cloud, 4, ())
    np.testing.assert_allclose(got.mean(1), 0, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(got, axis=0).max(), 1, rtol=1e-6)
    np.testing.assert_allclose(po.decode(7 * cloud + 3, 4, ()), got, atol=1e-6)
    np.testing.assert_array_equal(po.decode(cloud, 4, (), fit="keep"), cloud.T)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    with pytest.raises(Unreadable, match="at one place"):
        po.decode(np.ones((5, 3)), 4, ())
    assert po.decode(np.ones((5, 3)), 4, (), fit="keep").tolist() == [[1] * 4] * 3
    with pytest.raises(Unreadable, match="no 'nx'"):
        po.decode(cloud, 4, ("nx",))


def test_meshes_are_sampled_on_their_faces_evenly_by_area(tmp_path):
    # a triangle of area 1/2 at height 0 and one of area 2 at height 5
    text = "OFF\n6 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 5\n2 0 5\n0 2 5\n3 0 1 2\n3 3 4 5\n"
    path = write(tmp_path, "a.off", text)
    got = po.decode(path, 4000, (), fit="keep")
    upper = got[2] == 5
    assert 0.77 < upper.mean() < 0.83
    x, y = got[:2, upper]
    assert (x >= 0).all() and (y >= 0).all() and (x + y <= 2 + 1e-6).all()
    np.testing.assert_allclose([x.mean(), y.mean()], 2 / 3, atol=0.03)  # uniform: the mean is the centroid
    np.testing.assert_array_equal(po.decode(path, 4000, (), fit="keep"), got)
    assert po.decode(path, 6, (), fit="keep", mesh="corners")[2].tolist() == [0, 0, 0, 5, 5, 5]
    flat = write(tmp_path, "b.off", "OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    assert po.decode(flat, 3, (), fit="keep")[0].tolist() == [0, 1, 2]  # a mesh without area: its corners


def test_statistics_keep_shapes():
    samples = np.zeros((2, 4, 2), np.float32)
    samples[0, 0] = [-1, 1]
    samples[1, 0], samples[1, 1] = [-1, 1], [0, 0]
    samples[:, 3] = [[0, 2], [4, 6]]
    mean, std, scale = po.measure_clouds(samples)
    np.testing.assert_allclose(mean, [0, 0, 0, 3])
    np.testing.assert_allclose(std, [1, 1, 1, 5**0.5])  # one number for x, y and z: the root mean square radius
    assert scale == 1


def test_controls_do_not_depend_on_the_order_of_points_and_two_not_on_rotation():
    rng = np.random.default_rng(0)
    clouds = rng.standard_normal((5, 3, 400)).astype(np.float32) * np.array([1, 2, 3], np.float32)[:, None]
    order = rng.permutation(400)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    turned = (turn @ clouds).astype(np.float32)
    np.testing.assert_allclose(po.shape_distribution(turned), po.shape_distribution(clouds), atol=2 / po.PAIRS)
    np.testing.assert_allclose(po.moments(turned), po.moments(clouds), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(po.moments(clouds[:, :, order]), po.moments(clouds), rtol=1e-4, atol=1e-5)
    first, second = po.occupancy(clouds, clouds[:, :, order], spec())
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(first.sum(1), 1, rtol=1e-5)
    # two points: half of the pairs are a point with itself, the others at one distance: twice the mean
    pair = np.zeros((1, 3, 2), np.float32)
    pair[0, 0, 1] = 3
    histogram = po.shape_distribution(pair)[0]
    assert set(np.flatnonzero(histogram)) <= {0, po.BINS * 2 // 3 - 1, po.BINS * 2 // 3, po.BINS * 2 // 3 + 1}
    assert histogram[0] == pytest.approx(0.5, abs=0.03) and histogram.sum() == pytest.approx(1)


def test_moments_of_a_stretched_cross():
    cross = np.zeros((1, 3, 6), np.float32)
    cross[0, 0, :2], cross[0, 1, 2:4], cross[0, 2, 4:] = [-3, 3], [-2, 2], [-1, 1]
    row = po.moments(cross)[0]
    np.testing.assert_allclose(row[:3], np.array([3, 2, 1]) / 3**0.5, rtol=1e-5)
    np.testing.assert_allclose(row[3:6], [2 / 3, 1 / 3, 1 / 2], rtol=1e-5)
    np.testing.assert_allclose(row[6:12], [0, 0, 0, 3, 3, 3], atol=1e-4)  # two of six points at sqrt(3) deviations
    np.testing.assert_allclose(row[12:], [2, (2 / 3) ** 0.5, 1, 3], rtol=1e-5)


def test_pictures_put_what_is_up_up_and_what_is_near_before():
    line = np.zeros((1, 3, 2), np.float32)
    line[0, 2] = [-1, 1]
    for up, side in (("z", 2), ("y", 1), ("x", 0)):
        cloud = np.zeros((1, 3, 2), np.float32)
        cloud[0, side] = [-1, 1]
        picture = po.picture(cloud, spec(2, up=up))
        assert picture.shape == (1, 96, 96, 3) and picture.dtype == np.uint8
        rows, columns = np.nonzero((picture[0] != 255).any(-1))
        assert set(columns) == {47, 48, 49} and len(set(rows)) == 6 and rows.min() < 15 and rows.max() > 80
    eye = po._view("z")[2]
    both = np.stack([0.9 * eye, -0.9 * eye], 1)[None].astype(np.float32)
    picture = po.picture(both, spec(2, up="z"))
    assert picture[0, 48, 48].tolist() < [60, 80, 140]  # the dark, near one covers the other
    assert po.picture(both[:, :, [1, 0]], spec(2, up="z"))[0, 48, 48].tolist() == picture[0, 48, 48].tolist()
    np.testing.assert_allclose(po._view("z") @ po._view("z").T, np.eye(3), atol=1e-12)
    assert np.linalg.det(po._view("x")) == pytest.approx(1)
    assert (po.picture(0.5 * line, spec(2), like=line) != po.picture(line, spec(2))).any()
    assert po.picture(np.zeros((2, 3, 4), np.float32), spec(4)).shape == (2, 96, 96, 3)
