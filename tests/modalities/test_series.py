from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.modalities import Unreadable
from osteon.modalities import series as m
from osteon.parts.types import DataSpec

NAN = np.nan


def spec(channels=1, length=8):
    return DataSpec("series", channels, length, (0.0,) * channels, (1.0,) * channels, 1.0, shape=(length,))


def test_gaps_lie_on_the_line_between_neighbours_and_ends_repeat_the_nearest():
    values = np.array([[NAN, 1, NAN, NAN, 4, NAN], [NAN, NAN, np.inf, NAN, NAN, NAN]])
    np.testing.assert_array_equal(m.fill_missing(values), [[1, 1, 2, 3, 4, 4], [0, 0, 0, 0, 0, 0]])
    whole = np.arange(6.0).reshape(2, 3)
    assert m.fill_missing(whole) is whole


def test_lengths_are_stretched_or_padded():
    values = np.array([[0.0, 2.0, 4.0]])
    np.testing.assert_allclose(m.fit_length(values, 5), [[0, 1, 2, 3, 4]])
    np.testing.assert_allclose(m.fit_length(values, 2), [[0, 4]])
    np.testing.assert_allclose(m.fit_length(values, 5, "pad"), [[0, 2, 4, 4, 4]])
    np.testing.assert_allclose(m.fit_length(values, 2, "pad"), [[0, 2]])
    assert m.fit_length(values, 3) is values


def test_own_normalisation_has_mean_0_and_deviation_1_whatever_the_units_and_a_flat_series_is_0():
    values = np.stack([np.arange(8.0), np.full(8, 5.0)])
    z = m.decode(values, 8, "resample", "window")
    np.testing.assert_allclose(z[0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(z[0].std(), 1, rtol=1e-5)
    assert (z[1] == 0).all()
    np.testing.assert_allclose(m.decode(1e4 * values + 7, 8, "resample", "window"), z, atol=1e-5)
    np.testing.assert_array_equal(m.decode(values, 8, "resample", "series"), values)


def test_what_cannot_be_used_says_why():
    for payload, words in ((np.full((2, 4), NAN), "all values missing"), (np.empty((2, 0)), "no value"),
                           (np.zeros(4), "channels by time"), (b"", "is empty"), (b"is broken", "is broken")):
        with pytest.raises(Unreadable, match=words):
            m.read_header(payload)
    header = m.read_header(np.array([[1, NAN, np.inf], [1, 2, 3]]))
    assert (header.channels, header.length, header.missing) == (2, 3, 2)
    with pytest.raises(Unreadable, match="32-bit"):
        m.decode(np.array([[0.0, 1e60]]), 2, "resample", "series")
    with pytest.raises(UsageError, match="no norm 'batch'.*series or window"):
        m.choice("batch", m.NORMS, "norm")


def test_summary_statistics_by_hand():
    t = np.arange(64)
    wave = np.cos(2 * np.pi * 8 * t / 64)  # period 8
    row = m.summary_statistics(np.stack([3 + 2 * wave, np.full(64, 5.0)])[:, None].astype(np.float32))
    assert row.shape == (2, 25)
    np.testing.assert_allclose(row[0, :2], [3, np.sqrt(2)], rtol=1e-5)
    np.testing.assert_allclose(row[0, 4], 3, atol=1e-5)  # median
    lags = dict(zip(m.LAGS, row[0, 7:17], strict=True))
    np.testing.assert_allclose(lags[8], 56 / 64, rtol=1e-5)  # 56 of 64 products, each as large as at lag 0
    np.testing.assert_allclose(lags[4], -60 / 64, rtol=1e-5)
    np.testing.assert_allclose(lags[2], -1 / 64, rtol=1e-4)  # 0 all round, less z0 z62 = 0 and z1 z63 = 1
    bands = np.exp(row[0, 17:]) - 1e-4
    np.testing.assert_allclose(bands.max(), 1, rtol=1e-5)
    np.testing.assert_allclose(bands.sum(), 1, atol=1e-5)
    np.testing.assert_allclose(row[1], [5, 0, 5, 5, 5, 5, 5, *[0] * 18], atol=1e-5)


def test_a_lower_tone_lies_in_a_lower_band():
    t = np.arange(128)
    waves = np.stack([np.sin(2 * np.pi * turns * t / 128) for turns in (2, 8, 40)])[:, None]
    bands = m.summary_statistics(waves)[:, 17:].argmax(1)
    assert bands[0] < bands[1] < bands[2]


def test_raw_values_are_averages_of_spans():
    x = np.arange(1024, dtype=np.float32).reshape(1, 1, 1024)
    np.testing.assert_allclose(m.raw_values(x)[0, :2], [1.5, 5.5])
    assert m.raw_values(x).shape == (1, 256)
    assert m.raw_values(np.zeros((2, 20, 512), np.float32)).shape == (2, 20 * 51)
    assert m.raw_values(np.ones((3, 2, 5), np.float32)).shape == (3, 10)


def test_pictures_show_up_to_three_channels_each_in_its_colour():
    up = np.linspace(0, 1, 32)
    values = np.stack([np.stack([up, 5 * up[::-1], 0 * up, up])])
    image = m.picture(values, spec(4, 32))
    assert image.shape == (1, 64, 128, 3) and image.dtype == np.uint8
    blue = (image[0].astype(int) - m.COLOURS[0]) ** 2
    rows = blue.sum(-1)[:, [4, 123]].argmin(0)
    assert rows[0] > 55 and rows[1] < 8  # rises from the lower left to the upper right
    assert (image[0, :, 64] != 255).any() and (image[0, 0, 10:118] == 255).all()
    one = m.picture(np.ones((2, 1, 1)), spec(1, 1))
    assert one.shape == (2, 64, 128, 3) and (one != 255).any()
    shown = m.picture(values, spec(4, 32), like=10 * values)
    assert not np.array_equal(shown, image)
