"""Sound: waves, spectrograms and controls, by hand, by another library and by what happens to damaged files."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.modalities import Unreadable
from osteon.modalities import sound as so
from osteon.parts.types import DataSpec


def tone(frequency: float, rate: int = 8000, seconds: float = 0.5) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


def test_a_wav_file_comes_back_as_it_was():
    wave = tone(440)
    payload = so.encode_wav(wave, 8000)
    header = so.read_header(payload)
    assert (header.rate, header.length, header.channels, header.seconds) == (8000, 4000, 1, 0.5)
    np.testing.assert_allclose(so.decode(payload, 8000), wave, atol=1 / 32767)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_plain_wav_needs_no_library(width, channels, tmp_path, monkeypatch):
    import sys
    import wave as stdlib

    monkeypatch.setitem(sys.modules, "soundfile", None)  # as if it were not installed
    values = np.stack([tone(440), -tone(440)][:channels], 1)
    whole = np.rint(values * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    raw = (whole + 128).astype(np.uint8).tobytes() if width == 1 else \
        whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    path = tmp_path / "a.wav"
    with stdlib.open(str(path), "wb") as file:
        file.setparams((channels, width, 8000, 0, "NONE", ""))
        file.writeframes(raw)
    assert so.read_header(path).channels == channels
    np.testing.assert_allclose(so.decode(path, 8000), values.mean(1), atol=2 ** (2 - 8 * width) + 1e-6)


def test_other_files_without_the_library_name_the_extra(tmp_path, monkeypatch):
    import sys

    from osteon.core.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "soundfile", None)
    path = tmp_path / "a.flac"
    path.write_bytes(b"fLaC" + b"\0" * 100)
    with pytest.raises(MissingExtra, match="sound"):
        so.read_header(path)


def test_resampling_keeps_the_pitch_and_the_loudness():
    payload = so.encode_wav(tone(440, 16000, 1.0), 16000)
    got = so.decode(payload, 8000)
    assert len(got) == 8000
    np.testing.assert_allclose(got[200:-200], tone(440, 8000, 1.0)[200:-200], atol=0.01)
    # what the lower rate cannot hold is gone rather than folded back
    assert np.abs(so.decode(so.encode_wav(tone(6000, 16000, 1.0), 16000), 8000)[200:-200]).max() < 0.01


def test_length_is_the_middle_or_padded_with_silence():
    assert so.fit_length(np.arange(7), 3).tolist() == [2, 3, 4]
    assert so.fit_length(np.arange(1, 3), 4).tolist() == [1, 2, 0, 0]
    assert so.fit_length(np.arange(3), 3).tolist() == [0, 1, 2]


def test_mel_filters_equal_those_of_transformers():
    audio = pytest.importorskip("transformers.audio_utils")
    want = audio.mel_filter_bank(num_frequency_bins=257, num_mel_filters=40, min_frequency=0.0, max_frequency=4000.0,
                                 sampling_rate=8000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(so.mel_filters(40, 8000, 512), want.T, atol=1e-9)


def test_no_band_is_empty_at_usual_rates():
    for rate in (4000, 8000, 16000, 44100):
        assert (so.mel_filters(64, rate, so.fft_size(rate)).sum(1) > 0).all(), rate


def test_a_tone_lies_in_its_band_and_silence_at_the_floor():
    wave = np.concatenate([tone(1000), np.zeros(4000)])
    mel = so.log_mel(wave, 8000, 40, 96)
    assert mel.shape == (1, 40, 96) and mel.dtype == np.float32
    centres = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 42)[1:-1] / 2595) - 1)
    assert abs(centres[mel[0, :, 20].argmax()] - 1000) < 60
    np.testing.assert_allclose(mel[0, :, 70], np.log(so.FLOOR), rtol=1e-6)


def test_spectrogram_equals_the_direct_sum():
    rng, rate = np.random.default_rng(0), 1000
    wave = rng.standard_normal(100)
    window, fft, frame = 25, so.fft_size(rate), 4
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    start = frame * 10 - window // 2
    piece = np.array([wave[i] if 0 <= i < 100 else 0.0 for i in range(start, start + window)]) * hann
    power = [abs(sum(piece[n] * np.exp(-2j * np.pi * k * n / fft) for n in range(window))) ** 2
             for k in range(fft // 2 + 1)]
    want = np.log(so.mel_filters(8, rate, fft) @ np.array(power) / (hann**2).sum())
    np.testing.assert_allclose(so.log_mel(wave, rate, 8, 10)[0, :, frame], want, rtol=1e-5)


def test_loudness_shifts_every_band_alike():
    wave = np.random.default_rng(1).standard_normal(4000)
    low, high = so.log_mel(wave, 8000, 20, 40), so.log_mel(10 * wave, 8000, 20, 40)
    np.testing.assert_allclose(high - low, 2 * np.log(10), atol=1e-4)


def test_cepstral_statistics_by_hand():
    constant = np.full((1, 1, 4, 6), 3.0, np.float32)
    got = so.mfcc_statistics(constant, 2)
    np.testing.assert_allclose(got, [[6.0, 0, 0, 0, 0, 0, 0, 0]], atol=1e-5)  # 3 * sqrt(4), nothing moves
    rising = np.arange(6, dtype=np.float32)[None, None, None].repeat(4, 2)
    got = so.mfcc_statistics(rising, 1)[0]
    want = [5.0, 2 * np.std(np.arange(6)), 2 * 5 / 6, 2 * np.std([0, 1, 1, 1, 1, 1])]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_controls_of_waves_and_spectrograms():
    spec = DataSpec("sound", 1, 80, (0.0,), (1.0,), 1.0, shape=(64, 80))
    mel = np.random.default_rng(0).standard_normal((5, 1, 64, 80)).astype(np.float32)
    raw = np.random.default_rng(0).standard_normal((5, 1, 2000)).astype(np.float32)
    for samples, widths in ((mel, (80, 64, 1024)), (raw, (64, 64, 1024))):
        for control, width in zip(so.CONTROLS.values(), widths, strict=True):
            assert control(samples, samples[:2], spec)[1].shape == (2, width)
    np.testing.assert_allclose(so.mean_spectrum(mel), mel[:, 0].mean(2))


def test_pictures_put_low_bands_at_the_bottom():
    spec = DataSpec("sound", 1, 8, (0.0,), (1.0,), 1.0, shape=(4, 8))
    mel = np.zeros((1, 1, 4, 8), np.float32)
    mel[0, 0, 0] = 1.0  # the lowest band is loud
    picture = so.picture(mel, spec)[0].astype(int).sum(-1)
    assert picture[-1].min() > picture[:-1].max()
    assert so.picture(np.zeros((2, 1, 500), np.float32), spec).shape == (2, 64, 128, 3)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "empty"), (b"RIFF", "cannot be decoded"), (b"\0" * 500, "cannot be decoded"),
    (so.encode_wav(np.zeros(0), 8000), "no sample")])
def test_damaged_recordings_are_refused_in_words(content, reason, tmp_path):
    with pytest.raises(Unreadable, match=reason):
        so.read_header(content)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason):
        so.read_header(path)


def test_hostile_headers_are_refused_before_memory_is_taken(tmp_path):
    import struct

    data = bytearray(so.encode_wav(tone(100), 8000))
    data[24:28] = struct.pack("<I", 1)  # one sample a second
    with pytest.raises(Unreadable, match="samples a second"):
        so.read_header(bytes(data))
    with pytest.raises(Unreadable, match="not found"):
        so.read_header(tmp_path / "none.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(Unreadable, match="regular file"):
        so.read_header(tmp_path / "folder.wav")
    with pytest.raises(Unreadable, match="hours"):
        so.read_header(so.encode_wav(np.zeros(400_000), 100))


def test_truncated_recordings_give_what_is_there_or_a_reason():
    whole = so.encode_wav(tone(440), 8000)
    got = so.decode(whole[:len(whole) // 2], 8000)
    np.testing.assert_allclose(got[:1900], tone(440)[:1900], atol=1 / 32000)
