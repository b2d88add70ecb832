"""Collapse of embeddings: strangers agree as well as two views of one sample do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import MonitorStop
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.objectives import simsiam
from osteon.train.agreement import AgreementMonitor, agreement
from osteon.train.loop import make_fabric, train
from osteon.train.settings import resolve_settings


def pairs(step, batch=32, dim=64, common=0.0, own=0.0):
    """Two views of every sample: noise of each view, ``own`` of the sample and ``common`` of all."""
    g = torch.Generator().manual_seed(step)
    sample, noise = torch.randn(batch, 1, dim, generator=g), torch.randn(batch, 2, dim, generator=g)
    return noise + own * sample + common * torch.randn(1, 1, dim, generator=torch.Generator().manual_seed(99))


def stopped_at(views, steps=range(0, 400, 20), monitor=None):
    monitor = monitor or AgreementMonitor()
    for step in steps:
        try:
            monitor.check(views(step), step)
        except MonitorStop as error:
            return step, str(error)
    return None, ""


def test_agreement_by_hand():
    # Samples 1 and 2 look the same way in both views; sample 3 turns round. Cosines of view 1 (rows) and view 2:
    # (1 0 0), (0 1 0), (0 0 -1): same 1, 1, -1, strangers 0 throughout.
    eye = torch.eye(3)
    same, strangers, effect = agreement(torch.stack([eye, eye * torch.tensor([[3.0], [0.5], [-1.0]])], 1))
    assert (same, strangers) == (pytest.approx(1 / 3), 0.0)
    assert effect == pytest.approx((1 / 3) / math.sqrt(4 / 3))  # deviations 2/3, 2/3, -4/3; divided by 2
    assert agreement(torch.ones(4, 2, 5))[1:] == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-3))
    third = torch.cat([pairs(0), 100 * torch.ones(32, 1, 64)], 1)
    assert agreement(third) == agreement(pairs(0))  # small crops do not count


@pytest.mark.parametrize("batch", [8, 32, 256])
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_strangers_that_come_to_agree_stop_the_run(batch, scale):
    step, text = stopped_at(lambda s: scale * pairs(s, batch, common=0.0 if s < 40 else 2.0))
    assert step is not None and 80 <= step <= (300 if batch < 32 else 140)
    assert "collapsed" in text and "effect size" in text and "threshold 0.3)" in text and "collapse_stop" in text


def test_embeddings_that_shrink_and_tell_nothing_stop_the_run():
    step, text = stopped_at(lambda s: pairs(s) * (1.0 if s < 40 else 0.3))
    assert step is not None and 120 <= step <= 160 and "once 1" in text
    assert stopped_at(lambda s: pairs(s) * (1.0 if s < 40 else 0.4)) == (None, "")
    assert stopped_at(lambda s: pairs(s, own=1.0) * (1.0 if s < 40 else 0.01)) == (None, "")  # the scale alone


def test_no_alarm_while_views_tell_something_of_the_sample():
    for own in (0.7, 1.0, 3.0):  # a bias that all share, above what is each sample's own
        assert stopped_at(lambda s, own=own: pairs(s, common=0.0 if s < 40 else 3.0, own=own)) == (None, "")
    assert stopped_at(lambda s: pairs(s, common=0.0 if s < 40 else 2.0, own=0.2)) == (None, "")  # an effect of 0.35


def test_no_alarm_at_whatever_a_network_begins_with():
    assert stopped_at(lambda s: pairs(s, common=3.0)) == (None, "")  # nothing has risen: a long warm-up
    assert stopped_at(lambda s: pairs(s)) == (None, "")  # nothing learned yet
    assert stopped_at(lambda s: pairs(s, common=0.0 if s < 40 else 0.8)) == (None, "")  # some of it shared


def test_few_samples_take_longer_and_too_few_are_not_judged():
    def views(batch):
        return lambda s: pairs(s, batch, common=0.0 if s < 40 else 2.0)

    assert all(stopped_at(views(few)) == (None, "") for few in (2, 3, 4, 7))
    monitor = AgreementMonitor()
    assert monitor.check(torch.ones(2, 2, 4), 0) == {} and monitor.check(torch.ones(8, 1, 4), 0) == {}
    assert monitor.check(torch.ones(8, 4), 0) == {} and monitor.check(torch.full((8, 2, 4), math.nan), 0) == {}


def test_checks_that_do_not_count_are_averaged_in():
    assert stopped_at(lambda s: pairs(s, common=2.0 if s % 40 else 0.0)) == (None, "")


def test_a_resumed_run_remembers():
    first, again = AgreementMonitor(), AgreementMonitor()
    for step in (0, 20, 40, 60):
        first.check(pairs(step, common=2.0 if step else 0.0), step)
    again.load_state_dict(first.state_dict())
    with pytest.raises(MonitorStop, match="at first -?0.0"):
        again.check(pairs(80, common=2.0), 80)
    fresh = AgreementMonitor()
    fresh.load_state_dict(AgreementMonitor().state_dict())
    assert fresh.state_dict() == {"least": None, "widest": 0.0, "seen": []}


# -- planted in real runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", ["no stop-gradient", "no variance term", "one grey image"])
def test_planted_collapse_ends_a_run_within_200_steps(plant, tmp_path, monkeypatch):
    data, options, name = open_source("digits:train", cache=False, limit=256), {}, "simsiam"
    if plant == "no stop-gradient":
        monkeypatch.setattr(simsiam, "negative_cosine", lambda p, z: -F.cosine_similarity(p, z, dim=-1))
    elif plant == "no variance term":
        name, options = "vicreg", {"var": 0.0, "head_width": 256}
    else:
        name = "simclr"
        np.save(tmp_path / "grey.npy", np.full((64, 8, 8, 3), 128, np.uint8))
        data = open_source(tmp_path / "grey.npy", cache=False)
    torch.manual_seed(0)
    network = build_backbone("resnet_tiny", channels=data.spec.channels, size=8, depths=[1, 1], widths=[16, 32])
    method = registry.build("objective", name, network, data.spec, **options)
    settings, _ = resolve_settings({"steps": 201, "batch_size": 32, "seed": 0, "checkpoint_every": 1000}, method.recipe,
                                   len(data), kind="maps")
    with pytest.raises(MonitorStop, match="embeddings have collapsed") as stopped:
        train(method, data, RunFolder(tmp_path / "run"), settings, fabric=make_fabric("32"), say=lambda text: None)
    assert 40 <= int(stopped.value.where.removeprefix("step ")) <= 200
