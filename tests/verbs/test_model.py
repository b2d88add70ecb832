from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import DataError, UsageError
from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.parts.members import spec_from
from osteon.parts.types import DataSpec
from osteon.verbs._model import extract, fit_samples, is_ours, load_trained, save_trained


def dataset(images: np.ndarray) -> Dataset:
    return Dataset.from_arrays(images)


def test_images_are_divided_then_normalised_with_the_statistics_of_training():
    spec = DataSpec("image", 1, 2, mean=(0.5,), std=(0.25,))
    eight = dataset(np.array([[[[0, 255], [51, 102]]]], np.uint8))
    wanted = [(v - 0.5) / 0.25 for v in (0.0, 1.0, 0.2, 0.4)]
    assert fit_samples(eight, spec, np.array([0])).flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    sixteen = dataset(eight.images.astype(np.uint16) * 257)  # another storage type, the same picture
    assert fit_samples(sixteen, spec, np.array([0])).flatten().tolist() == pytest.approx(wanted, abs=1e-6)


def test_another_size_is_resized_with_antialiasing_before_the_normalisation():
    spec = DataSpec("image", 1, 2, mean=(0.5,), std=(0.5,))
    image = np.zeros((1, 1, 4, 4), np.uint8)
    image[..., 2:] = 255  # left black, right white
    left, right = fit_samples(dataset(image), spec, np.array([0]))[0, 0, 0].tolist()
    # A triangle of half-width 2 about pixel 0.5 of 4: weights 3/12, ..; 1/8 of it lies in the white half.
    weights = np.array([max(0, 1 - abs(i - 0.5) / 2) for i in range(4)])
    white = float(weights[2:].sum() / weights.sum())
    assert left == pytest.approx((white - 0.5) / 0.5, abs=1e-5) and right == pytest.approx(-left, abs=1e-5)


def test_another_number_of_channels_is_refused():
    spec = DataSpec("image", 3, 2, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(DataError, match="3-channel data; this source has 1"):
        fit_samples(dataset(np.zeros((1, 1, 2, 2), np.uint8)), spec, np.array([0]))


@pytest.mark.parametrize("name", ["vit_tiny", "resnet_tiny"])
def test_what_is_saved_is_what_is_loaded(tmp_path, name):
    torch.manual_seed(0)
    network = build_backbone(name, channels=4, size=8, **({"stride": 2} if name == "resnet_tiny" else {"depth": 2}))
    spec = DataSpec("image", 4, 8, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4, scale=65535.0, num_classes=2,
                    class_weights=(0.5, 1.5))
    save_trained(RunFolder(tmp_path / "run"), network, spec, {"steps": 3})
    got = load_trained(tmp_path / "run")
    assert got.spec == spec and got.meta["steps"] == 3 and got.name == "run" and not got.backbone.training
    assert got.backbone.options == network.options
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(got.backbone(x).pooled, network.eval()(x).pooled)
    assert spec_from({**json.loads(json.dumps(spec.__dict__)), "of_later": 1}) == spec


def test_features_do_not_depend_on_the_batch_and_the_network_keeps_its_mode(digits):
    part = digits.subset(np.arange(10))
    network = build_backbone("resnet_tiny", channels=1, size=8).train()
    whole, parts = (extract(network, part, part.spec, batch_size=b) for b in (10, 3))
    assert whole.shape == (10, network.dim) and whole.dtype == np.float32
    assert np.allclose(whole, parts, atol=1e-5) and network.training
    with torch.no_grad():
        alone = network.eval()(fit_samples(part, part.spec, np.array([7]))).pooled
    assert np.allclose(whole[7], alone.numpy()[0], atol=1e-5)


def test_what_is_no_run_is_refused(tmp_path, trained):
    with pytest.raises(UsageError, match="no run folder"):
        load_trained(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no run folder"):
        load_trained(trained / "model.safetensors")
    with pytest.raises(DataError, match="not finished"):
        load_trained(tmp_path)
    assert is_ours(trained) and not is_ours(tmp_path) and not is_ours("timm:resnet18")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert not is_ours(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    assert not is_ours(tmp_path)


def test_the_spec_of_a_run_is_that_of_its_data(trained, digits):
    got = load_trained(trained).spec
    assert replace(got, class_weights=()).size == 8 and got.channels == 1 and got.scale == 255.0
    assert got.mean[0] == pytest.approx(float(digits.images.mean() / 255), abs=0.01)
