"""The family contract: every registered adapter is held to it, because it has a card."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.tensorfile import write_tensors
from osteon.parts.adapter import BASE
from tests.contracts.adapter_kit import (
    EQUAL,
    NETWORKS,
    OPTIONS,
    TASK,
    fits,
    images,
    make,
    names,
    network,
    pairs,
    train,
    trained,
)

EVERY = pytest.mark.parametrize(("name", "net"), pairs(), ids=lambda v: v)
ADAPTERS = pytest.mark.parametrize("name", names())
#: what changes in training beside what trains, by design: gates' masks and flags, and who rests
MOVING = ("mask_", "pruned", "held", "strength", "columns", "drawn")


@EVERY
def test_at_the_start_it_is_the_pre_trained_network(name, net):
    base, adapter = network(net), make(name, net).eval()
    with torch.no_grad():
        want, got = base(images()).pooled, adapter.encode(images())
    if name in EQUAL:
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(adapter(images()), adapter.head(want), atol=2e-5, rtol=1e-4)
    elif name == "vqt":  # the backbone's features are part of what the head reads
        torch.testing.assert_close(got[:, :base.dim], F.normalize(want, dim=-1), atol=1e-5, rtol=1e-4)
    elif name in ("meft", "visual_prompt"):  # close, as their cards say
        assert float(F.cosine_similarity(got, want).min()) > 0.8
    else:
        assert got.shape == want.shape and bool(got.isfinite().all())


@EVERY
def test_the_trainable_count_is_the_formula(name, net):
    adapter = make(name, net)
    assert sum(p.numel() for p in adapter.trainable().values()) == adapter.expected_trainable()
    assert adapter.head.out_features == TASK.num_classes
    if name not in ("full", "diff_pruning"):  # those train, or gate, everything
        assert adapter.expected_trainable() - adapter.head_size < sum(p.numel() for p in network(net).parameters())


@EVERY
def test_only_what_is_declared_trains_and_gradient_reaches_all_of_it(name, net):
    adapter, reached, before = trained(name, net)
    assert set(adapter.trainable()) == reached
    declared = {*adapter.trainable(), *adapter.state_kept()}
    for key, value in adapter.state_dict().items():
        if key not in declared and not key.rpartition(".")[2].startswith(MOVING):
            assert torch.equal(value, before[key]), key
    moved = [k for k in adapter.trainable() if not torch.equal(adapter.state_dict()[k], before[k])]
    assert set(moved) == reached


@EVERY
def test_the_given_backbone_and_its_weights_inside_are_bit_identical_after_training(name, net):
    base = network(net)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    adapter = make(name, base)
    train(adapter, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    if name in ("full", "pissa"):  # the one trains every weight, the other starts by taking a part out of each
        return
    inside = {(tuple(v.shape), v.double().sum().item()) for v in adapter.backbone.state_dict().values()}
    trains = {n.rpartition(".")[2] for n in adapter.trainable()} if name == "bias" else set()
    for key, value in before.items():
        if key.rpartition(".")[2] not in trains:
            assert (tuple(value.shape), value.double().sum().item()) in inside, key


@EVERY
def test_merged_it_computes_the_same_or_says_why_not(name, net):
    adapter = trained(name, net)[0]
    if not adapter.mergeable:
        with pytest.raises(UsageError, match=f"{name} works beside the backbone's weights"):
            adapter.merge()
        return
    merged = adapter.merge().eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(images()).pooled, adapter.encode(images()), atol=1e-5, rtol=1e-4)
    fresh = network(net)
    fresh.load_state_dict(merged.state_dict())  # names and shapes are the plain backbone's
    assert type(merged) is type(fresh)


@EVERY
def test_the_delta_holds_only_what_changed_and_brings_it_back(name, net):
    adapter = trained(name, net)[0]
    delta = adapter.delta()
    again = make(name, net, seed=7)
    again.load_delta(delta)
    again.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images()), adapter(images()), atol=1e-5, rtol=1e-4)
        merged = again.merge if again.mergeable else None
        if merged:
            torch.testing.assert_close(merged().eval()(images()).pooled, adapter.encode(images()), atol=1e-5, rtol=1e-4)
    if name == "full":
        return
    size = sum(v.numel() for k, v in delta.items() if k != BASE and not k.startswith(("start_", "columns")))
    assert size <= adapter.expected_trainable()


@ADAPTERS
def test_a_delta_for_another_base_or_another_adapter_is_refused_and_nothing_changes(name):
    adapter = trained(name, "vit")[0]
    delta = adapter.delta()
    other = network("vit")
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-3
    stranger = make(name, other)
    before = stranger.delta()
    with pytest.raises(UsageError, match="another base: the fingerprints differ"):
        stranger.load_delta(delta)
    with pytest.raises(UsageError, match="does not say which base"):
        stranger.load_delta({k: v for k, v in delta.items() if k != BASE})
    same = make(name, "vit", seed=3)
    start = same.delta()
    with pytest.raises(UsageError, match="another adapter: it holds nonsense"):
        same.load_delta({**delta, "nonsense": torch.zeros(1)})
    with pytest.raises(UsageError, match="another adapter: it lacks head.bias"):
        same.load_delta({k: v for k, v in delta.items() if k != "head.bias"})
    for mine, kept in ((stranger.delta(), before), (same.delta(), start)):
        assert mine.keys() == kept.keys() and all(torch.equal(mine[k], kept[k]) for k in kept)


@ADAPTERS
def test_several_deltas_share_one_base(name):
    adapter = make(name, "vit").eval()
    with torch.no_grad():
        logits = {"start": adapter(images())}
        adapter.keep("start")
    for seed, kept in ((5, "first"), (11, "second")):
        train(adapter, steps=3, seed=seed)
        adapter.keep(kept)
        with torch.no_grad():
            logits[kept] = adapter(images())
    assert adapter.kept() == ["start", "first", "second"]
    for kept in ("first", "second", "start", "first"):
        adapter.use(kept)
        with torch.no_grad():
            torch.testing.assert_close(adapter(images()), logits[kept], atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="No delta is kept as 'frist'. Did you mean 'first'"):
        adapter.use("frist")


@ADAPTERS
def test_a_pattern_without_a_layer_is_an_error_that_names_the_layers(name):
    options = {o.name for o in registry.options(registry.find("adapter", name))}
    if "targets" not in options:
        pytest.skip("has no targets")
    for targets in ("blocks.*.attn.qvk", "blocks.*.norm1", ""):
        with pytest.raises(UsageError, match=r"Layers there are: .*blocks\.\*\.attn\.qkv"):
            make(name, "vit", targets=targets)
    one = make(name, "vit", targets="blocks.1.attn.qkv")
    with torch.no_grad():
        torch.testing.assert_close(one.eval().encode(images()), network("vit")(images()).pooled, atol=2e-5, rtol=1e-4)
    assert one.expected_trainable() == sum(p.numel() for p in one.trainable().values())


@pytest.mark.parametrize(("name", "net"), [(a, n) for a in names() for n in NETWORKS if not fits(a, n)],
                         ids=lambda v: v)
def test_a_network_it_cannot_read_is_refused(name, net):
    if (name, net) == ("pissa", "timm_convnext"):  # its MLPs are linear layers
        assert make(name, net, rank=2).expected_trainable() > 0
        return
    with pytest.raises(UsageError) as error:
        make(name, net)
    assert error.value.fix


@ADAPTERS
def test_frozen_parts_stay_in_evaluation_mode_and_a_copy_is_whole(name):
    adapter = make(name, "resnet" if fits(name, "resnet") else "vit").train()
    if name == "full":
        assert all(m.training for m in adapter.modules())
    else:
        assert not any(m.training for n, m in adapter.backbone.named_modules()
                       if ".change" not in n and "lora_dropout" not in n)
    twin = copy.deepcopy(adapter)
    train(twin, steps=1)
    before = adapter.delta()
    assert all(torch.equal(v, before[k]) for k, v in make(name, "resnet" if fits(name, "resnet") else "vit").delta()
               .items())


def test_unlabelled_data_is_refused():
    from dataclasses import replace

    with pytest.raises(UsageError, match="at least two classes"):
        registry.build("adapter", "linear", network("vit"), replace(TASK, num_classes=0))


CHILD = """
import sys
from pathlib import Path
import torch
from osteon.core.tensorfile import read_tensors
from tests.contracts.adapter_kit import images, make, names
for name in names():
    delta, _ = read_tensors(Path(sys.argv[1]) / f"{name}.safetensors")
    logits = delta.pop("logits")
    adapter = make(name, "vit", seed=123)
    adapter.load_delta(delta)
    with torch.no_grad():
        assert float((adapter.eval()(images()) - logits).abs().max()) < 1e-5, name
"""


def test_deltas_reload_in_a_fresh_process(tmp_path):
    for name in names():
        adapter = trained(name, "vit")[0]
        with torch.no_grad():
            logits = adapter(images())
        write_tensors(tmp_path / f"{name}.safetensors", {**adapter.delta(), "logits": logits}, {})
    done = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_option_of_the_kit_exists():
    assert all(set(options) <= {o.name for o in registry.options(registry.find("adapter", name))}
               for name, options in OPTIONS.items())
