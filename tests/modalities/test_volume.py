"""Volumes: headers and values byte by byte, orientation, spacing, windows and controls by hand, and damaged files."""

from __future__ import annotations

import gzip
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tests.modalities.volumes import nifti, write

from osteon.core.errors import MissingExtra
from osteon.modalities import Unreadable
from osteon.modalities import volume as vo
from osteon.modalities._dicom import order_slices
from osteon.modalities._nifti import read_nifti, read_nifti_header
from osteon.parts.types import DataSpec

SPEC = DataSpec("volume", 1, 16, (0.0,), (1.0,), 65535.0, shape=(16, 16, 16))


def counted(shape=(3, 4, 5), dtype="i2") -> np.ndarray:
    """Values i + 10 j + 100 k."""
    i, j, k = np.indices(shape)
    return (i + 10 * j + 100 * k).astype(dtype)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_every_type_order_and_version_comes_back(version, order, dtype, tmp_path):
    values = counted((3, 4, 2), dtype)
    affine = np.array([[2.0, 0, 0, -5], [0, 3, 0, 6], [0, 0, 4, 7]])
    path = write(tmp_path / "a.nii.gz", values, affine, version=version, order=order)
    got, found = read_nifti(path)
    assert got.dtype == np.float32 and got.shape == (1, 2, 4, 3)
    np.testing.assert_array_equal(got[0].transpose(2, 1, 0), values.astype(np.float32))
    np.testing.assert_array_equal(found, affine)
    assert vo.read_header(path) == vo.Header(1, (2, 4, 3), (4.0, 3.0, 2.0))


def test_values_are_scaled_as_the_header_says_and_a_fourth_side_is_channels(tmp_path):
    values = np.stack([counted(), counted() + 1], -1)
    got, _ = read_nifti(write(tmp_path / "a.nii", values, slope=2.0, inter=-1024.0))
    assert got.shape == (2, 5, 4, 3)
    np.testing.assert_array_equal(got[1].transpose(2, 1, 0), 2.0 * (counted() + 1) - 1024)
    got, _ = read_nifti(write(tmp_path / "b.nii", counted(), slope=0.0, inter=7.0))
    np.testing.assert_array_equal(got[0].transpose(2, 1, 0), counted())  # slope 0 means none
    assert vo.read_header(tmp_path / "a.nii").channels == 2


def test_the_quaternion_is_a_rotation_and_the_sform_stands_above_it(tmp_path):
    half = 0.5**0.5  # a quarter turn about the third axis: i runs along y, j against x
    path = write(tmp_path / "a.nii", counted(), quatern=(0.0, 0.0, half, 1.0, 2.0, 3.0), spacing=(2.0, 3.0, 4.0),
                 qfac=-1.0)
    np.testing.assert_allclose(read_nifti_header(path).affine, [[0, -3, 0, 1], [2, 0, 0, 2], [0, 0, -4, 3]], atol=1e-6)
    path = write(tmp_path / "b.nii", counted(), np.eye(3, 4), quatern=(0.0, 0.0, half, 0.0, 0.0, 0.0))
    np.testing.assert_array_equal(read_nifti_header(path).affine, np.eye(3, 4))
    path = write(tmp_path / "c.nii", counted(), quatern=(0.6, 0.8, 0.0, 0, 0, 0))  # a half turn: the real part is 0
    np.testing.assert_allclose(read_nifti_header(path).affine[:, :3], [[-0.28, 0.96, 0], [0.96, 0.28, 0], [0, 0, -1]],
                               atol=1e-6)
    path = write(tmp_path / "d.nii", counted(), spacing=(2.0, 3.0, 4.0))
    np.testing.assert_array_equal(read_nifti_header(path).affine[:, :3], np.diag([2.0, 3, 4]))


def test_headers_and_values_equal_those_of_nibabel(tmp_path):
    nib = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).integers(0, 999, (4, 5, 6)).astype(np.int16)
    affine = np.array([[0, -2.0, 0, 3], [0.1, 0, 3, 1], [1.5, 0, 0.2, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    got, spacing = vo.upright(*read_nifti(tmp_path / "a.nii.gz"))
    want = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(got[0].transpose(2, 1, 0), np.asarray(want.dataobj))
    np.testing.assert_allclose(spacing[::-1], want.header.get_zooms())


def test_every_orientation_is_turned_to_up_front_right_and_the_values_move_along():
    import itertools

    world = counted()  # (right, front, up)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            affine = np.zeros((3, 4))
            for axis, (where, sign) in enumerate(zip(order, signs, strict=True)):
                affine[where, axis] = sign * (where + 1.0)  # 1, 2, 3 mm to the right, front, up
            stored = world.transpose(order)[tuple(slice(None, None, s) for s in signs)]  # (i, j, k)
            got, spacing = vo.upright(stored.transpose(2, 1, 0)[None], affine)
            np.testing.assert_array_equal(got[0], world.transpose(2, 1, 0))
            assert spacing == (3.0, 2.0, 1.0)


def test_oblique_axes_go_to_the_nearest_as_a_whole():
    c, s = np.cos(0.9), np.sin(0.9)  # 51 degrees: j is nearer to the first axis than i is
    affine = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0]])
    old, mirrored, _ = vo.turn(affine)
    assert old == (0, 2, 1) and mirrored == (False, False, True)


def test_resampling_keeps_means_and_ramps():
    x = np.arange(12, dtype=np.float32)[None, :, None, None]
    half = vo.resample(x, 1, 6)
    np.testing.assert_allclose(half[0, 1:-1, 0, 0], [2.5, 4.5, 6.5, 8.5], atol=1e-5)
    double = vo.resample(x, 1, 24)
    np.testing.assert_allclose(double[0, 1:-1, 0, 0], np.arange(22) / 2 + 0.25, atol=1e-5)
    assert vo.resample(x, 1, 12) is x
    assert [vo.sampled(10, 1.5, 3.0), vo.sampled(3, 1.0, 9.0), vo.sampled(10, 1.0, 1.0)] == [5, 1, 10]


def test_decoding_turns_and_resamples(tmp_path):
    values = np.zeros((8, 4, 4), np.float32)
    values[:4] = 1.0  # i runs to the left, so the right half is 1
    path = write(tmp_path / "a.nii", values, np.array([[-1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]))
    got = vo.decode(path, (2.0, 2.0, 2.0))
    assert got.shape == (1, 4, 4, 4)
    np.testing.assert_allclose(got[0, 0, 0], [0, 1 / 8, 7 / 8, 1], atol=1e-6)  # a triangle 2 wide


def test_windows_by_hand():
    x = np.linspace(-1000, 1000, 2001, dtype=np.float32).reshape(1, 1, 1, 2001)
    got = vo.scale_window(x, (-175.0, 250.0))[0, 0, 0]
    assert got[:826].max() == 0 and got[1250:].min() == 1
    np.testing.assert_allclose(got[1000], 175 / 425, rtol=1e-5)
    got = vo.scale_window(x, None)[0, 0, 0]  # percentiles 0.5 and 99.5 are -990 and 990
    np.testing.assert_allclose(got[[10, 1000, 1990, 2000]], [0, 0.5, 1, 1], atol=1e-6)
    rare = np.zeros((1, 10, 10, 10), np.float32)
    rare[0, 0, 0, 0] = 5.0
    assert vo.scale_window(rare, None).max() == 1  # one cell in a thousand still counts
    with pytest.raises(Unreadable, match="same value"):
        vo.scale_window(np.ones((1, 2, 2, 2), np.float32), None)
    assert vo.scale_window(np.ones((1, 2, 2, 2), np.float32), (0.0, 2.0)).max() == 0.5


def test_extent_is_the_middle_or_surrounded_by_the_lowest_value():
    x = np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1, 1)
    assert vo.fit_extent(x, (3, 1, 1)).ravel().tolist() == [3, 4, 5]
    assert vo.fit_extent(x, (10, 1, 1)).ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 0]
    assert vo.fit_extent(x, (7, 3, 2)).shape == (1, 7, 3, 2)


def test_the_histogram_and_small_volumes_by_hand():
    x = np.zeros((1, 1, 16, 16, 16), np.uint16)
    x[0, 0, :4] = 65535
    x[0, 0, 4:8] = 32768
    hist = vo.intensity_histogram(x, 4)[0]
    np.testing.assert_allclose(hist, [0.5, 0, 0.25, 0.25])
    small = vo.small_volumes(x, 2)[0].reshape(2, 2, 2)
    np.testing.assert_allclose(small[:, 0, 0], [0.75, 0], atol=1e-5)
    assert vo.small_volumes(x).shape == (1, 512)


def test_gradients_are_counted_by_direction_and_octant():
    ramp = np.broadcast_to(np.arange(16) * 4000, (1, 1, 16, 16, 16)).astype(np.uint16)
    got = vo.gradient_statistics(ramp)[0].reshape(8, 13)
    along = [i for i, d in enumerate(vo._DIRECTIONS) if np.allclose(np.abs(d), [0, 0, 1])]
    np.testing.assert_allclose(got[:, along], 4000 / 65535, rtol=1e-4)
    assert got.sum() == pytest.approx(8 * 4000 / 65535, rel=1e-4)  # nothing elsewhere
    assert len(vo._DIRECTIONS) == 13
    assert vo.gradient_statistics(np.zeros((2, 1, 1, 4, 4), np.uint16)).shape == (2, 104)  # a side of one cell


def test_a_picture_shows_three_middle_slices_with_up_and_front_at_the_top():
    x = np.zeros((1, 1, 8, 6, 4), np.float32)
    x[0, 0, 4, 5, 0] = 1.0  # in the middle slice seen from above: at the front, on the left
    x[0, 0, 7, 3, 1] = 0.5  # seen from the front: at the top
    picture = vo.picture(x, SPEC)
    assert picture.shape == (1, 8, 4 + 4 + 6, 3)
    assert picture[0, 0, 0, 0] == 255 and picture[0, 0, 4 + 1, 0] == 128
    assert (picture[0, :, :, 0] > 0).sum() == 2


@pytest.mark.parametrize(("change", "reason"), [
    ({"dim": (3, 30000, 30000, 30000, 1, 1, 1, 1)}, "more than the limit"),
    ({"dim": (3, 40, 40, 40, 1, 1, 1, 1)}, "truncated"),
    ({"dim": (2, 12, 5, 1, 1, 1, 1, 1)}, "no volume"),
    ({"dim": (5, 3, 4, 5, 1, 2, 1, 1)}, "5 sides"),
    ({"dim": (3, -3, 4, 5, 1, 1, 1, 1)}, "impossible sides"),
    ({"code": 32}, "type 32"),
    ({"affine": np.zeros((3, 4))}, "not invertible"),
    ({"affine": np.full((3, 4), np.nan)}, "not invertible"),
])
def test_wrong_headers_are_refused_in_words(change, reason, tmp_path):
    affine = change.pop("affine", None)
    path = write(tmp_path / "a.nii", counted(), affine, **change)
    with pytest.raises(Unreadable, match=reason):
        vo.read_header(path)
    if "affine" not in change and reason != "truncated":
        with pytest.raises(Unreadable, match=reason):
            vo.read_header(write(tmp_path / "a.nii.gz", counted(), affine, **change))


def test_damaged_files_are_refused_in_words(tmp_path):
    whole = gzip.compress(nifti(np.random.default_rng(0).random((16, 16, 16)).astype("f4")))
    for name, content, reason in (("empty.nii", b"", "empty"), ("short.nii", b"abc", "truncated"),
                                  ("other.nii", b"x" * 1000, "not a NIfTI"), ("text.nii.gz", b"x" * 1000, "decoded"),
                                  ("short.nii.gz", whole[:200], "truncated"),
                                  ("zeros.nii", b"\0" * 600, "not a NIfTI")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match=reason):
            vo.read_header(tmp_path / name)
    (tmp_path / "late.nii.gz").write_bytes(whole[:-1000])  # the header is whole, the values are not
    assert vo.read_header(tmp_path / "late.nii.gz").sides == (16, 16, 16)
    with pytest.raises(Unreadable, match="truncated"):
        vo.decode(tmp_path / "late.nii.gz", (1.0, 1.0, 1.0))
    (tmp_path / "few.nii.gz").write_bytes(gzip.compress(nifti(counted(), dim=(3, 9, 9, 9, 1, 1, 1, 1))))
    with pytest.raises(Unreadable, match="120 of the 1,458 bytes"):
        vo.decode(tmp_path / "few.nii.gz", (1.0, 1.0, 1.0))
    values = counted(dtype="f4")
    values[1, 1, 1] = np.nan
    with pytest.raises(Unreadable, match="NaN"):
        vo.decode(write(tmp_path / "nan.nii", values), (1.0, 1.0, 1.0))
    with pytest.raises(Unreadable, match="20 volumes"):
        vo.read_header(write(tmp_path / "film.nii", np.zeros((4, 4, 4, 20), "u1")))
    with pytest.raises(Unreadable, match="not found"):
        vo.read_header(tmp_path / "none.nii")
    pair = bytearray(nifti(counted()))
    pair[344:348] = b"ni1\0"
    (tmp_path / "pair.nii").write_bytes(pair)
    with pytest.raises(Unreadable, match="half of a pair"):
        vo.read_header(tmp_path / "pair.nii")
    raw = bytearray(nifti(counted()))
    struct.pack_into("<f", raw, 108, np.nan)
    (tmp_path / "offset.nii").write_bytes(raw)
    with pytest.raises(Unreadable, match="begin at byte"):
        vo.read_header(tmp_path / "offset.nii")


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.zeros((2, 3, 4), complex), np.zeros((0, 3, 4)),
                                    np.zeros((1, 2, 3, 4, 5))])
def test_arrays_that_are_no_volumes_are_refused(values):
    with pytest.raises(Unreadable, match="not \\(D, H, W\\)"):
        vo.read_header(values)


def slices(count: int = 4, gap: float = 2.5, turn=(1.0, 0, 0, 0, 1, 0), **changes: object) -> list[SimpleNamespace]:
    normal = np.cross(turn[:3], turn[3:])
    return [SimpleNamespace(SeriesInstanceUID="1", Rows=5, Columns=6, PixelSpacing=[0.5, 0.7], InstanceNumber=9 - n,
                            ImageOrientationPatient=list(turn),
                            ImagePositionPatient=list(np.array([10.0, 20.0, 30.0]) + n * gap * normal), **changes)
            for n in range(count)]


def test_slices_are_ordered_by_place_and_placed_to_the_right_front_and_up():
    made = slices()
    ordered, shape, affine = order_slices([made[i] for i in (2, 0, 3, 1)])
    assert [id(s) for s in ordered] == [id(s) for s in made] and shape == (4, 5, 6)
    # columns run to the left, rows to the back: both against osteon's axes
    np.testing.assert_allclose(affine, [[-0.7, 0, 0, -10], [0, -0.5, 0, -20], [0, 0, 2.5, 30]])
    old, mirrored, spacing = vo.turn(affine)
    assert old == (0, 1, 2) and mirrored == (False, True, True) and spacing == (2.5, 0.5, 0.7)
    _, _, sagittal = order_slices(slices(turn=(0.0, 1, 0, 0, 0, -1)))
    assert vo.turn(sagittal)[0] == (1, 2, 0)  # slices run sideways, rows down, columns to the back


@pytest.mark.parametrize(("made", "reason"), [
    (slices(1), "1 slice"), (slices(2) + slices(1), "twice"), (slices(8)[:3] + slices(8)[4:], "lacks slices"),
    (slices(3) + slices(1, SeriesNumber=2), "twice"), (slices(3, NumberOfFrames=7), "multi-frame")])
def test_folders_of_slices_that_are_no_volume_are_refused(made, reason):
    with pytest.raises(Unreadable, match=reason):
        order_slices(made)


def test_slices_of_two_series_sizes_or_without_a_place_are_refused():
    for name, value, reason in (("SeriesInstanceUID", "2", "2 series"), ("Rows", 9, "different sizes"),
                                ("ImagePositionPatient", None, "without a place"),
                                ("ImageOrientationPatient", [0, 1, 0, 1, 0, 0], "not parallel")):
        made = slices()
        setattr(made[2], name, value)
        with pytest.raises(Unreadable, match=reason):
            order_slices(made)
    made = slices(3)
    for one in made:
        one.Rows = one.Columns = 60000
    with pytest.raises(Unreadable, match="more than the limit"):
        order_slices(made)


def test_slices_without_the_library_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtra, match=r"osteon\[volume\]"):
        vo.read_header(tmp_path)


def test_dicom_files_are_read_in_the_units_of_the_scanner(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for n in (2, 0, 1):
        one = pydicom.Dataset()
        one.update({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": f"1.2.{n + 1}",
                    "SeriesInstanceUID": "1.2.9"})
        one.Rows, one.Columns, one.PixelSpacing = 2, 3, [1.0, 2.0]
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4.0 * n]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 1
        one.RescaleSlope, one.RescaleIntercept = 2, -1000
        one.PixelData = np.arange(6 * n, 6 * n + 6, dtype="<i2").tobytes()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        one.save_as(tmp_path / f"{9 - n}.dcm", enforce_file_format=True)
    assert vo.read_header(tmp_path) == vo.Header(1, (3, 2, 3), (4.0, 1.0, 2.0))
    got = vo.decode(tmp_path, (4.0, 1.0, 2.0))
    want = np.arange(18).reshape(3, 2, 3)[:, ::-1, ::-1] * 2.0 - 1000  # rows to the front, columns to the right
    np.testing.assert_array_equal(got[0], want)
