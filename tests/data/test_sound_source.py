"""Sources of sound: folders, manifests, what is chosen by rule, and what is told of files that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import find_duplicates, open_source
from osteon.modalities.sound import decode, encode_wav, fit_length, log_mel


def clip(seed: int, seconds: float = 0.2, rate: int = 8000) -> bytes:
    return encode_wav(0.3 * np.random.default_rng(seed).standard_normal(round(seconds * rate)), rate)


@pytest.fixture
def folder(tmp_path):
    for label in ("ja", "nein"):
        (tmp_path / label).mkdir()
        for i in range(6):
            (tmp_path / label / f"{i}.wav").write_bytes(clip(i + 10 * (label == "ja")))
    return tmp_path


def test_a_folder_of_recordings_is_sound_with_classes(folder):
    data = open_source(folder, cache=False)
    assert data.modality == "sound" and data.class_names == ["ja", "nein"] and len(data) == 12
    assert data.images.shape == (12, 1, 64, 32) and data.images.dtype == np.float32
    assert data.spec.traits == {"rate": 8000, "seconds": 0.32, "bands": 64, "front": "logmel"}
    assert data.spec.extent == (64, 32)
    wave = fit_length(decode(clip(10), 8000), 2560)
    np.testing.assert_array_equal(data.images[0], log_mel(wave, 8000, 64, 32))
    assert set(data.batch([0, 1])) == {"sound", "index", "label"}
    text = " ".join(data.notes)
    for rule in ("8,000 Hz (rule:", "0.32 s (rule:", "64 mel bands", "averaged to one"):
        assert rule in text, rule


def test_options_and_the_wave_itself(folder):
    data = open_source(folder, cache=False, rate=4000, seconds=0.5, front="raw")
    assert data.images.shape == (12, 1, 64 * 40)  # 50 frames, in whole 16: 64 of 10 ms
    assert data.spec.traits["rate"] == 4000 and data.spec.extent == (data.images.shape[2],)
    for wrong, name in (({"front": "mfcc"}, "front"), ({"seconds": -1.0}, "seconds"), ({"bands": 1}, "bands"),
                        ({"size": 32}, "size"), ({"sample_rate": 1}, "sample_rate")):
        with pytest.raises(UsageError, match=name):
            open_source(folder, cache=False, **wrong)


def test_other_data_is_read_like_that_of_the_model(folder, tmp_path_factory):
    spec = open_source(folder, cache=False, rate=4000, seconds=0.16, bands=16).spec
    other = tmp_path_factory.mktemp("other")
    (other / "a.wav").write_bytes(clip(1, seconds=3.0, rate=16000))
    data = open_source(other, cache=False, like=spec)
    assert data.spec.traits == spec.traits and data.spec.extent == spec.extent == (16, 16)


def test_manifest_with_speakers_as_groups(folder):
    (folder / "metadata.csv").write_text("file_name,label,speaker\nja/0.wav,yes,anna\nnein/1.wav,no,ben\n")
    data = open_source(folder, cache=False)
    assert data.class_names == ["no", "yes"] and data.groups == ["anna", "ben"]
    assert data.ids == ["ja/0.wav", "nein/1.wav"]
    assert open_source(folder / "metadata.csv", cache=False).ids == data.ids


def test_damaged_files_are_skipped_with_reasons(folder):
    (folder / "ja" / "broken.wav").write_bytes(b"RIFF nothing")
    (folder / "ja" / "empty.wav").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 14 recordings"):
        open_source(folder, cache=False)
    data = open_source(folder, cache=False, max_skipped=0.2)
    assert {s.id: s.reason.split(":")[0] for s in data.skipped} == {
        "ja/broken.wav": "cannot be decoded", "ja/empty.wav": "is empty (0 bytes)"}
    for path in folder.glob("*/[0-9].wav"):
        path.write_bytes(b"RIFF")
    with pytest.raises(DataError, match="No readable recording"):
        open_source(folder, cache=False, max_skipped=1.0)


def test_cache_gives_the_same_and_copies_are_found(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    first, again = (open_source(folder, cache=cache) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint == open_source(folder, cache=False).fingerprint
    assert first.spec == again.spec
    found = find_duplicates(first.subset([0, 1, 2]), first.subset([2, 3]))
    assert found.exact == [("ja/2.wav", "ja/2.wav")] and "defined for images" in " ".join(found.notes)


def test_images_stay_images_and_what_is_asked_is_obeyed(folder, tmp_path_factory):
    from PIL import Image

    pictures = tmp_path_factory.mktemp("pictures")
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 50 * i, np.uint8)).save(pictures / f"{i}.png")
    (pictures / "a.wav").write_bytes(clip(0))
    assert open_source(pictures, cache=False).modality == "image"
    sound = open_source(pictures, cache=False, modality="sound")
    assert sound.modality == "sound" and len(sound) == 1
    with pytest.raises(DataError, match="no recording"):
        (pictures / "a.wav").unlink()
        open_source(pictures, cache=False, modality="sound")
    with pytest.raises(UsageError, match="sound"):
        open_source(folder, modality="sond")


def test_tones_are_the_same_every_time_and_their_parts_are_apart():
    train, test = (open_source(f"tones:{part}", cache=False) for part in ("train", "test"))
    assert (len(train), len(test)) == (1400, 600) and train.class_names == test.class_names
    assert not set(train.ids) & set(test.ids) and len(find_duplicates(train, test)) == 0
    assert train.spec.traits["rate"] == 4000
    np.testing.assert_array_equal(open_source("tones:test", cache=False).images, test.images)
