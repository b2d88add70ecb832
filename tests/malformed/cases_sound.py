"""Recordings: wav, flac and others that lie about their length, hold nothing, or hold odd numbers."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import soundfile

from tests.malformed.kit import Case, Loads, among, cases, files, listed, one, put, refused, skipped

WAVE = (0.4 * np.sin(np.arange(4000) / 5)).astype(np.float32)


def recording(kind: str = "WAV", subtype: str | None = None, rate: int = 8000, values: Any = WAVE) -> bytes:
    memory = io.BytesIO()
    soundfile.write(memory, values, rate, subtype=subtype, format=kind)
    return memory.getvalue()


def wav(
    data: bytes = bytes(8000),
    *,
    rate: int = 8000,
    channels: int = 1,
    bits: int = 16,
    form: int = 1,
    claims: int | None = None,
    block: int | None = None,
) -> bytes:
    """A wav whose header says what it likes."""
    block = channels * bits // 8 if block is None else block
    head = struct.pack("<HHIIHH", form, channels, rate & 0xFFFFFFFF, (rate * block) & 0xFFFFFFFF, block, bits)
    body = b"fmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(data) if claims is None else claims)
    return b"RIFF" + struct.pack("<I", 4 + len(body) + len(data)) + b"WAVE" + body + data


GOOD = {"a.wav": recording(values=WAVE), "b.wav": recording(values=-WAVE)}
KINDS = {
    "wav": recording(),
    "flac": recording("FLAC"),
    "ogg": recording("OGG"),
    "aiff": recording("AIFF"),
    "au": recording("AU"),
    "mp3": recording("MP3", rate=16000),
}
DAMAGED = [
    Case(f"{kind}, {what}", among(GOOD, f"bad.{kind}", damage(data)), skipped(2, bad=reason))
    for kind, data in KINDS.items()
    for what, damage, reason in (
        ("0 bytes", lambda d: b"", "empty (0 bytes)"),
        ("3 bytes", lambda d: d[:3], "decoded" if kind != "wav" else "cannot"),
        ("wrong magic", lambda d: b"nothing of that" * 9, "cannot be decoded"),
    )
]


def flac_claim(samples: int) -> bytes:
    """A flac whose header counts that many samples."""
    data = bytearray(recording("FLAC"))
    data[21] = (data[21] & 0xF0) | (samples >> 32) & 0x0F
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


CLAIMS = [
    Case(what, among(GOOD, name, data), rule)
    for what, name, data, rule in (
        ("a wav that claims 4 GB: what is there", "odd.wav", wav(claims=0xFFFFFFFE), Loads(3)),
        ("a wav that claims 0 bytes", "odd.wav", wav(b"", claims=0), skipped(2, odd="holds no sample")),
        ("a wav without data", "odd.wav", wav()[:36], skipped(2, odd="")),
        ("a flac that claims 2^36 - 1 samples", "odd.flac", flac_claim(2**36 - 1), skipped(2, odd="hours")),
        (
            "a flac that claims 20 minutes and holds half a second",
            "odd.flac",
            flac_claim(9_600_000),
            skipped(2, odd=""),
        ),
        ("0 samples a second", "odd.wav", wav(rate=0), skipped(2, odd="")),
        ("7 samples a second", "odd.wav", wav(rate=7), skipped(2, odd="samples a second")),
        ("2^32 - 1 samples a second", "odd.wav", wav(rate=2**32 - 1), skipped(2, odd="")),
        ("0 channels", "odd.wav", wav(channels=0, block=2), skipped(2, odd="")),
        ("65,535 channels", "odd.wav", wav(channels=65535, block=2), skipped(2, odd="")),
        ("0 bits", "odd.wav", wav(bits=0, block=0), skipped(2, odd="")),
        ("an unknown coding", "odd.wav", wav(form=0x7777), skipped(2, odd="cannot be decoded")),
        ("one sample", "odd.wav", recording(values=WAVE[:1]), Loads(3)),
        (
            "two hours of silence in a small flac",
            "odd.flac",
            recording("FLAC", rate=100, values=np.zeros(720_000, np.int16)),
            skipped(2, odd="hours"),
        ),
        (
            "NaN in floats",
            "odd.wav",
            recording(subtype="FLOAT", values=np.full(4000, np.nan, np.float32)),
            skipped(2, odd="NaN"),
        ),
        (
            "infinity in floats",
            "odd.wav",
            recording(subtype="DOUBLE", values=np.full(4000, np.inf)),
            skipped(2, odd="NaN"),
        ),
        ("floats of 1e38", "odd.wav", recording(subtype="FLOAT", values=np.full(4000, 1e38, np.float32)), Loads(3)),
        (
            "a chunk that claims 4 GB before the data",
            "odd.wav",
            wav()[:12] + b"LIST\xff\xff\xff\xff" + wav()[12:],
            skipped(2, odd=""),
        ),
        ("HTML under that name", "odd.mp3", b"<html>not found</html>" * 30, skipped(2, odd="cannot be decoded")),
        ("MP3 under the name of a wav", "odd.wav", KINDS["mp3"], Loads(3)),
    )
]

ODD = [
    Case(what, among(GOOD, f"odd.{kind}", recording(form, subtype, rate, values)), Loads(3, note="rate"))
    for what, kind, form, subtype, rate, values in (
        ("24 bits", "wav", "WAV", "PCM_24", 8000, WAVE),
        ("32 bits", "wav", "WAV", "PCM_32", 8000, WAVE),
        ("unsigned 8 bits", "wav", "WAV", "PCM_U8", 8000, WAVE),
        ("floats", "wav", "WAV", "FLOAT", 8000, WAVE),
        ("doubles", "wav", "WAV", "DOUBLE", 8000, WAVE),
        ("mu-law", "wav", "WAV", "ULAW", 8000, WAVE),
        ("ADPCM", "wav", "WAV", "IMA_ADPCM", 8000, WAVE),
        ("RF64", "wav", "RF64", "PCM_16", 8000, WAVE),
        ("W64 inside", "wav", "W64", "PCM_16", 8000, WAVE),
        ("24-bit flac", "flac", "FLAC", "PCM_24", 8000, WAVE),
        ("6 channels", "wav", "WAV", "PCM_16", 8000, np.stack([WAVE] * 6, 1)),
        ("11,025 samples a second", "wav", "WAV", "PCM_16", 11_025, WAVE),
        ("44,101 samples a second", "wav", "WAV", "PCM_16", 44_101, WAVE),
        ("a prime rate", "wav", "WAV", "PCM_16", 99_991, WAVE),
        ("192,000 samples a second", "flac", "FLAC", "PCM_16", 192_000, WAVE),
        ("silence", "wav", "WAV", "PCM_16", 8000, WAVE * 0),
        ("full scale", "wav", "WAV", "PCM_16", 8000, np.sign(WAVE)),
    )
]

SOURCES = [
    Case("silence alone", files(a_wav=recording(values=WAVE * 0), b_wav=recording(values=WAVE * 0)), Loads(2)),
    Case("one recording", files(a_wav=recording()), Loads(1, note="only one")),
    Case("the wave itself", files(a_wav=recording(), b_wav=recording()), Loads(2), options={"front": "raw"}),
    Case("only damaged ones", files(a_wav=b"x", b_wav=b"y"), refused("No readable recording")),
    Case(
        "a manifest with one missing",
        listed("path,label\na.wav,x\nb.wav,y\n", a_wav=recording()),
        skipped(1, b="not found"),
    ),
    Case("a single recording for a source", one("x.wav", recording()), refused("not a source")),
    Case("a rate of minus 5", files(a_wav=recording()), refused("rate"), options={"rate": -5}),
    Case("a rate of a thousand million", files(a_wav=recording()), refused("rate"), options={"rate": 10**9}),
    Case("a rate that is a word", files(a_wav=recording()), refused("rate"), options={"rate": "fast"}),
    Case("seconds that are infinite", files(a_wav=recording()), refused("seconds"), options={"seconds": float("inf")}),
    Case("seconds that are NaN", files(a_wav=recording()), refused("seconds"), options={"seconds": float("nan")}),
    Case("seconds of a year", files(a_wav=recording()), refused("limit"), options={"seconds": 3e7}),
    Case("a million bands", files(a_wav=recording()), refused("limit"), options={"bands": 10**9}),
    Case("bands that are a list", files(a_wav=recording()), refused("bands"), options={"bands": [1, 2]}),
    Case("an unknown front", files(a_wav=recording()), refused("front"), options={"front": "mfcc"}),
    Case("a size in pixels", files(a_wav=recording()), refused("pixels"), options={"size": 32}),
    Case(
        "recordings asked of images",
        lambda f: put(f, "a.png", b"x").parent,
        refused("no recording"),
        options={"modality": "sound"},
    ),
]

CASES = cases("sound", *DAMAGED, *CLAIMS, *ODD, *SOURCES)
