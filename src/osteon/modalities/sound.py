"""Sound: from recordings to waves of one rate, to log-mel spectrograms, and what costs no training to know of them.

Shape letters: B batch, M mel bands, F frames, T samples of a wave.
"""

from __future__ import annotations

import io
import math
import stat
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import MissingExtra
from osteon.modalities._base import Control, Payload, Unreadable
from osteon.modalities._files import reasons
from osteon.parts.types import DataSpec

#: Files with these endings are taken for recordings.
SUFFIXES = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"))
#: What several samples are called.
SAMPLES = "recordings"
#: How a recording becomes an array; printed.
RULES = ("channels are averaged to one; another rate is resampled (polyphase); longer recordings keep their middle, "
         "shorter ones are followed by silence")
#: Longest recording that is decoded, in seconds: a header that claims more is refused before memory is taken.
MAX_SECONDS = 3600.0
#: Most samples a second of a recording.
MAX_RATE = 768_000
#: Values that are decoded at a time: memory grows with what a file holds, not with what its header claims.
BLOCK = 2**22
#: Seconds of a frame and between frames (the field's standard 25 and 10 milliseconds).
WINDOW, HOP = 0.025, 0.010
#: Energies below this share of full scale count as silence.
FLOOR = 1e-8


@dataclass(frozen=True)
class Header:
    """What is known of a recording before it is decoded: samples a second, samples, channels."""

    rate: int
    length: int
    channels: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.length / self.rate


def read_header(payload: Payload) -> Header:
    """Rate, length and channels of a recording without decoding it. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        raise Unreadable("is an array without a rate")
    with reasons(), _open(payload) as file:
        header = Header(int(file.samplerate), int(file.frames), int(file.channels))
    if header.length < 1:
        raise Unreadable("holds no sample of sound")
    if not 100 <= header.rate <= MAX_RATE:
        raise Unreadable(f"claims {header.rate:,} samples a second")
    if header.seconds > MAX_SECONDS:
        raise Unreadable(f"claims {header.seconds / 3600:,.1f} hours, more than the limit of {MAX_SECONDS / 3600:.0f}; "
                         "cut it into parts")
    return header


def decode(payload: Payload, rate: int) -> np.ndarray:
    """One recording as a mono wave at ``rate`` samples a second, (T,) float32 about [-1, 1]. Raises `Unreadable`."""
    from scipy.signal import resample_poly

    with reasons(), _open(payload) as file:
        found, parts = int(file.samplerate), list[np.ndarray]()
        while len(part := file.read(max(1, BLOCK // int(file.channels)), dtype="float32", always_2d=True)):
            parts.append(part.mean(1))
            if sum(map(len, parts)) > MAX_SECONDS * found:
                raise Unreadable(f"holds more than {MAX_SECONDS / 3600:.0f} hour; cut it into parts")
    mono = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(mono):
        raise Unreadable("holds no sample of sound")
    if not np.isfinite(mono).all():
        raise Unreadable("contains NaN or infinity")
    if found != rate:
        common = math.gcd(found, rate)
        mono = resample_poly(mono, rate // common, found // common)
    return np.ascontiguousarray(mono, np.float32)


def fit_length(mono: np.ndarray, length: int) -> np.ndarray:
    """The middle ``length`` samples of a wave (T,), or the wave followed by silence."""
    if len(mono) >= length:
        start = (len(mono) - length) // 2
        return mono[start:start + length]
    return np.pad(mono, (0, length - len(mono)))


@lru_cache(maxsize=8)
def mel_filters(bands: int, rate: int, fft: int) -> np.ndarray:
    """Triangular filters, evenly spaced in mel from 0 to half the rate: (bands, fft // 2 + 1) float64.

    Mel after O'Shaughnessy 1987 (the formula of HTK): ``2595 log10(1 + f / 700)``; peaks of height 1.
    """
    def mel(f: float) -> float:
        return 2595 * math.log10(1 + f / 700)

    edges = 700 * (10 ** (np.linspace(0, mel(rate / 2), bands + 2) / 2595) - 1)
    f = np.arange(fft // 2 + 1) * rate / fft
    rise = (f[None] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - f[None]) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rise, fall), 0, None)


def fft_size(rate: int) -> int:
    """Points of the transform: a power of two of at least twice the window, so that low bands are not empty."""
    return int(2 ** math.ceil(math.log2(2 * WINDOW * rate)))


def log_mel(mono: np.ndarray, rate: int, bands: int, frames: int) -> np.ndarray:
    """Natural logarithm of the mel energies of a wave (T,): (1, bands, frames) float32, low bands first.

    Hann windows of 25 ms every 10 ms, frame i centred on sample i * hop (the wave is padded by silence); energies
    below :data:`FLOOR` count as that.
    """
    hop, window, fft = round(HOP * rate), round(WINDOW * rate), fft_size(rate)
    padded = np.pad(mono, (window // 2, max(0, (frames - 1) * hop + window - window // 2 - len(mono))))
    index = np.arange(frames)[:, None] * hop + np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectrum = np.fft.rfft(padded[index] * hann, fft)
    energy = (np.abs(spectrum) ** 2 / (hann**2).sum()) @ mel_filters(bands, rate, fft).T
    return np.log(np.maximum(energy, FLOOR)).T[None].astype(np.float32)


def mfcc_statistics(samples: np.ndarray, coefficients: int = 20) -> np.ndarray:
    """Mean and deviation over time of the cepstral coefficients and of their change: (N, 1, M, F) -> (N, 4 K).

    Davis & Mermelstein 1980: the cosine transform of the log-mel energies.
    """
    from scipy.fft import dct

    cepstra = dct(samples[:, 0].astype(np.float32), type=2, norm="ortho", axis=1)[:, :coefficients]
    change = np.diff(cepstra, axis=2, prepend=cepstra[:, :, :1])
    return np.concatenate([f(x, axis=2) for x in (cepstra, change) for f in (np.mean, np.std)], 1)


def mean_spectrum(samples: np.ndarray) -> np.ndarray:
    """Mean of every band over time, (N, 1, M, F) -> (N, M); of waves, mean energy of 64 bands of frequency."""
    if samples.ndim == 4:
        return samples[:, 0].mean(2)
    power = np.abs(np.fft.rfft(samples[:, 0].astype(np.float32), axis=1)) ** 2
    return np.log(np.maximum(np.stack([p.mean(1) for p in np.array_split(power, 64, axis=1)], 1), FLOOR))


def raw_spectrogram(samples: np.ndarray) -> np.ndarray:
    """The whole spectrogram averaged to at most 32 x 32 cells, (N, 1, M, F) -> (N, D); of waves, 1,024 averages."""
    parts = samples[:, 0]
    for side in range(1, parts.ndim):
        few = min(parts.shape[side], 32 if samples.ndim == 4 else 1024)
        parts = np.stack([p.mean(side) for p in np.array_split(parts, few, axis=side)], side)
    return parts.reshape(len(parts), -1)


def _apart(reader: Any) -> Control:
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(reader(train), np.float32), np.asarray(reader(test), np.float32)

    return both


def _cepstra(samples: np.ndarray) -> np.ndarray:
    return mfcc_statistics(samples) if samples.ndim == 4 else mean_spectrum(samples)


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"MFCC statistics": _apart(_cepstra), "mean spectrum": _apart(mean_spectrum),
                                "raw spectrogram": _apart(raw_spectrogram)}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone learns what it needs to know of sound from its channels and sides."""
    return {}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Spectrograms, low bands at the bottom, dark = quiet: (B, 1, M, F) -> (B, M, F, 3) uint8.

    Of waves (B, 1, T): the envelope, 64 cells high and 128 wide.
    """
    if values.ndim == 3:
        return _envelopes(values[:, 0])
    from matplotlib import colormaps

    low, high = (float(v) for v in np.percentile(values if like is None else like, [1, 99]))
    shown = np.clip((values[:, 0, ::-1] - low) / max(high - low, 1e-12), 0, 1)
    return (colormaps["magma"](shown)[..., :3] * 255).round().astype(np.uint8)


def _envelopes(waves: np.ndarray, high: int = 64, wide: int = 128) -> np.ndarray:
    peaks = np.stack([np.abs(p).max(1) if p.shape[1] else np.zeros(len(waves))
                      for p in np.array_split(waves, wide, axis=1)], 1)
    peaks = peaks / np.maximum(peaks.max(1, keepdims=True), 1e-12)
    rows = np.abs(np.arange(high) + 0.5 - high / 2) / (high / 2)
    ink = rows[None, :, None] <= peaks[:, None, :]
    return np.where(ink[..., None], np.array([40, 70, 160]), 255).astype(np.uint8)


class _Wave:
    """A wav file of whole numbers by the standard library, where soundfile is not installed."""

    def __init__(self, file: Any) -> None:
        self.file = wave.open(file, "rb")
        self.samplerate, self.frames = self.file.getframerate(), self.file.getnframes()
        self.channels, self.width = self.file.getnchannels(), self.file.getsampwidth()

    def __enter__(self) -> _Wave:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, frames: int = -1, dtype: str = "float32", always_2d: bool = True) -> np.ndarray:
        """The next ``frames`` samples, or all, about [-1, 1], (T, channels)."""
        raw = np.frombuffer(self.file.readframes(self.frames if frames < 0 else frames), np.uint8)
        whole = raw[:len(raw) // (self.width * self.channels) * self.width * self.channels]
        if self.width == 1:  # unsigned
            values: np.ndarray = (whole.astype(np.float32) - 128) / 128
        else:  # little-endian: the low bytes are filled with zeros up to 4
            padded = np.zeros((len(whole) // self.width, 4), np.uint8)
            padded[:, 4 - self.width:] = whole.reshape(-1, self.width)
            values = padded.view("<i4")[:, 0].astype(np.float32) / 2.0**31
        return values.reshape(-1, self.channels)


def encode_wav(samples: np.ndarray, rate: int) -> bytes:
    """A mono wave (T,) about [-1, 1] as a 16-bit wav file."""
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return memory.getvalue()


def _open(payload: Payload) -> Any:
    """The file of a recording; raises what its reader and the system raise."""
    if isinstance(payload, bytes):
        if not payload:
            raise Unreadable("is empty (0 bytes)")
        file: Any = io.BytesIO(payload)
    else:
        path = Path(str(payload))
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise Unreadable("is not a regular file")
        if status.st_size == 0:
            raise Unreadable("is empty (0 bytes)")
        file = str(path)
    try:
        import soundfile
    except ImportError as error:
        try:
            return _Wave(file)
        except (wave.Error, EOFError):
            raise MissingExtra("soundfile", "sound", why="Reading sound other than plain wav files") from error
    opened = soundfile.SoundFile(file)
    if opened.format == "RAW":  # what the library takes an .au file without a header for
        opened.close()
        raise Unreadable("cannot be decoded: it does not begin as an .au file")
    return opened
