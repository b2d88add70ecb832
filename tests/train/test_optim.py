from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from osteon.core.errors import UsageError
from osteon.train.optim import (
    LAMB,
    LARS,
    clip_gradients,
    describe_optimizer,
    layer_index,
    make_optimizer,
    scaled_lr,
)


def param(values, grad=None):
    p = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    p.grad = None if grad is None else torch.tensor(grad, dtype=torch.float64)
    return p


def close(tensor, values):
    torch.testing.assert_close(tensor.detach(), torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)


# -- LARS: |w| = 5; g + 2 w = (6, 8), |.| = 10; trust 0.5 -> scale 0.25 -> update (1.5, 2) ----------------------------


def test_lars_two_steps_by_hand():
    w = param([[3.0, 4.0]], [[0.0, 0.0]])
    optimizer = LARS([w], lr=0.1, weight_decay=2.0, momentum=0.5, trust=0.5)
    optimizer.step()
    close(w, [[2.85, 3.8]])
    # |w| = 4.75, g + 2 w = (8.55, 11.4), |.| = 14.25, scale 1/6: update (1.425, 1.9); momentum 0.5 (1.5, 2) + that.
    w.grad = torch.tensor([[2.85, 3.8]], dtype=torch.float64)
    optimizer.param_groups[0]["lr"] = 1.0  # the rate is applied after the momentum
    optimizer.step()
    close(w, [[2.85 - 2.175, 3.8 - 2.9]])


def test_lars_default_trust_and_scale_invariance_to_the_gradient():
    for factor in (1.0, 1000.0):
        w = param([[3.0, 4.0]], [[0.0, 2.0 * factor]])
        LARS([w], lr=1.0, momentum=0.0).step()
        close(w, [[3.0, 4.0 - 0.005]])


@pytest.mark.parametrize("w,g,after", [([0.0, 0.0], [1.0, 2.0], [-1.0, -2.0]), ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0])])
def test_lars_and_zero_norms(w, g, after):
    w = param([w], [g])
    LARS([w], lr=1.0).step()
    close(w, [after])


def test_lars_without_adaptation_is_sgd():
    w, v = param([3.0, 4.0]), param([3.0, 4.0])
    ours, sgd = LARS([w], lr=0.1, weight_decay=0.3, adapt=False), torch.optim.SGD([v], 0.1, 0.9, weight_decay=0.3)
    for i in range(3):
        w.grad, v.grad = torch.full_like(w, 1.0 + i), torch.full_like(v, 1.0 + i)
        ours.step()
        sgd.step()
    torch.testing.assert_close(w, v)


# -- LAMB: after one step with bias correction m' = g, v' = g^2, so u = sign(g) + decay w (eps 0) ---------------------


def test_lamb_first_step_by_hand():
    w = param([[3.0, 4.0]], [[5.0, -7.0]])
    LAMB([w], lr=0.1, betas=(0.9, 0.99), eps=0.0, weight_decay=1.0).step()
    # u = (1 + 3, -1 + 4) = (4, 3), |u| = 5 = |w|: the scale is 1.
    close(w, [[2.6, 3.7]])
    w = param([[3.0, 4.0]], [[5.0, -7.0]])
    LAMB([w], lr=1.0, eps=0.0).step()
    # u = (1, -1), |u| = sqrt 2, scale 5 / sqrt 2.
    close(w, [[3.0 - 5 / 2**0.5, 4.0 + 5 / 2**0.5]])


def test_lamb_second_step_by_hand():
    w = param([[1.0]], [[1.0]])
    optimizer = LAMB([w], lr=0.5, betas=(0.5, 0.75), eps=0.0)
    optimizer.step()
    close(w, [[0.5]])  # u = 1, |w| = 1
    w.grad = torch.tensor([[-3.0]], dtype=torch.float64)
    optimizer.step()
    # m = 0.5*0.5 - 0.5*3 = -1.25, / (1 - 0.25): -5/3; the sign decides, for |w| / |u| * u = -0.5
    close(w, [[0.75]])
    # v = 0.75*0.25 + 0.25*9 = 2.4375
    close(optimizer.state[w]["second"], [[2.4375]])
    close(optimizer.state[w]["first"], [[-1.25]])


def test_lamb_without_adaptation_is_adamw():
    w, v = param([3.0, 4.0]), param([3.0, 4.0])
    ours = LAMB([w], lr=0.1, weight_decay=0.3, eps=1e-8, adapt=False)
    adamw = torch.optim.AdamW([v], lr=0.1, weight_decay=0.3)
    for i in range(4):
        w.grad, v.grad = torch.tensor([1.0 + i, -2.0 * i]).double(), torch.tensor([1.0 + i, -2.0 * i]).double()
        ours.step()
        adamw.step()
    torch.testing.assert_close(w, v)


@pytest.mark.parametrize("w,g", [([0.0, 0.0], [5.0, -7.0])])
def test_lamb_moves_zero_weights(w, g):
    w = param([w], [g])
    LAMB([w], lr=0.1, eps=0.0).step()
    close(w, [[-0.1, 0.1]])


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lars", "lamb"])
def test_state_dict_resumes_bit_for_bit_and_parameters_without_gradient_stay(name):
    def run(optimizer, model, steps):
        for i in steps:
            optimizer.zero_grad()
            model[0](torch.full((2, 3), 1.0 + i)).sin().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4)])
    idle = model[1].weight.clone()
    optimizer = make_optimizer(model, name=name, lr=0.1, weight_decay=0.1)
    run(optimizer, model, range(2))
    other = copy.deepcopy(model)
    again = make_optimizer(other, name=name, lr=0.1, weight_decay=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, model, range(2, 4))
    run(again, other, range(2, 4))
    assert torch.equal(model[0].weight, other[0].weight) and torch.equal(model[0].bias, other[0].bias)
    assert torch.equal(model[1].weight, idle)


@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_closure_is_evaluated_with_gradient(kind):
    w = nn.Parameter(torch.ones(1, 2))

    def closure():
        loss = (w * w).sum()
        loss.backward()
        return loss

    assert kind([w], lr=0.1).step(closure).item() == 2.0
    assert (w < 1).all()


# -- groups -----------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 2))
        self.patch_embed = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(2, 2))
        self.tail = nn.ParameterDict({"tied": self.patch_embed.weight})

    def no_weight_decay(self):
        return {"scales"}


def groups(optimizer, model):
    name = {id(p): n for n, p in model.named_parameters()}
    return {g["name"]: (sorted(name[id(p)] for p in g["params"]), g["lr"], g["weight_decay"])
            for g in optimizer.param_groups}


def test_biases_norms_and_embeddings_are_not_decayed():
    model = Net()
    assert groups(make_optimizer(model, lr=1.0, weight_decay=0.5), model) == {
        "decay": (["blocks.0.weight", "blocks.1.weight", "patch_embed.weight"], 1.0, 0.5),
        "no decay": (["blocks.0.bias", "blocks.1.bias", "cls_token", "norm.bias", "norm.weight", "patch_embed.bias",
                      "scales"], 1.0, 0.0)}
    everything = make_optimizer(model, lr=1.0, weight_decay=0.5, exclude_bias_norm=False)
    assert [g["weight_decay"] for g in everything.param_groups] == [0.5]
    assert sum(len(g["params"]) for g in everything.param_groups) == 10


def test_submodules_exclusions_and_whole_names_count():
    outer = nn.ModuleDict({"net": Net(), "other": nn.Linear(2, 2)})
    none = groups(make_optimizer(outer, lr=1.0, no_weight_decay=("other.weight",)), outer)["no decay"][0]
    assert "net.scales" in none and "other.weight" in none and "net.cls_token" not in none


def test_layer_decay_by_hand():
    model = Net()
    found = groups(make_optimizer(model, lr=8.0, weight_decay=0.1, layer_decay=0.5), model)
    assert {k: v[1] for k, v in found.items()} == {
        "layer 0, decay": 1.0, "layer 0, no decay": 1.0, "layer 1, decay": 2.0, "layer 1, no decay": 2.0,
        "layer 2, decay": 4.0, "layer 2, no decay": 4.0, "layer 3, no decay": 8.0}
    assert found["layer 0, no decay"][0] == ["cls_token", "patch_embed.bias"]
    assert found["layer 3, no decay"][0] == ["norm.bias", "norm.weight", "scales"]


def test_everything_beside_the_backbone_is_the_last_layer():
    model = nn.ModuleDict({"backbone": Net(), "mixer": nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)] * 9)})})
    found = groups(make_optimizer(model, lr=8.0, layer_decay=0.5), model)
    assert found["layer 3, decay"][0] == ["mixer.blocks.0.weight"] and found["layer 3, decay"][1] == 8.0


def test_own_layer_index_and_no_layers():
    model = Net()
    none = make_optimizer(model, lr=1.0, layer_decay=0.5, layer_index=lambda _: -1)
    assert {g["lr"] for g in none.param_groups} == {1.0}
    scale = make_optimizer(model, lr=1.0, layer_decay=0.1, layer_index=lambda n: 1 if "norm" in n else 0).param_groups
    assert sorted({round(g["lr"], 6) for g in scale}) == [0.01, 0.1]


@pytest.mark.parametrize("name,layer", [
    ("backbone.patch_embed.proj.weight", 0), ("pos_embed", 0), ("backbone.blocks.0.norm1.weight", 1),
    ("blocks.11.mlp.fc1.bias", 12), ("backbone.norm.weight", -1), ("decoder.blocks.0.attn.qkv.weight", -1),
    ("decoder.mask_token", -1), ("predictor.blocks.1.norm1.weight", -1), ("projector.0.weight", -1),
    ("head.weight", -1),
    ("conv1.weight", 0), ("stem.0.weight", 0), ("layer1.0.conv1.weight", 1), ("layer4.1.bn2.bias", 4),
    ("stages.0.1.conv1.weight", 1), ("stages.3.blocks.2.norm.weight", 4), ("fc.weight", -1),
    ("vit.encoder.layer.5.output.dense.weight", 6), ("embeddings.cls_token", 0), ("blocks.2.attn.head.weight", 3)])
def test_layer_index(name, layer):
    assert layer_index(name) == layer


def test_lars_and_lamb_do_not_adapt_biases():
    for name in ("lars", "lamb"):
        by_name = {g["name"]: g["adapt"] for g in make_optimizer(Net(), name=name, lr=1.0).param_groups}
        assert by_name == {"decay": True, "no decay": False}


def test_options_reach_the_optimizer():
    model = Net()
    assert make_optimizer(model, name="sgd", lr=1.0, momentum=0.7).param_groups[0]["momentum"] == 0.7
    assert make_optimizer(model, name="lars", lr=1.0, momentum=0.7).param_groups[0]["momentum"] == 0.7
    for name in ("adam", "adamw", "lamb"):
        group = make_optimizer(model, name=name, lr=1.0, betas=(0.5, 0.6), eps=0.25).param_groups[0]
        assert group["betas"] == (0.5, 0.6) and group["eps"] == 0.25
    assert make_optimizer(model, name="adamw", lr=1.0).param_groups[0]["eps"] == 1e-8
    assert type(make_optimizer(model, name="adam", lr=1.0)) is torch.optim.Adam


def test_tied_weights_are_taken_once_under_their_first_name():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = make_optimizer(iter([("a", p), ("b", p)]), lr=1.0, no_weight_decay={"a"})
    assert [(g["name"], len(g["params"])) for g in optimizer.param_groups] == [("no decay", 1)]


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"lr": float("nan")}, {"weight_decay": -0.1}, {"momentum": 1.0},
                                     {"betas": (0.9, 1.0)}, {"layer_decay": 0.0}, {"layer_decay": 1.5}])
def test_impossible_numbers_are_refused_by_name(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        make_optimizer(Net(), **{"lr": 1.0, **options})


def test_unknown_name_and_nothing_to_train():
    with pytest.raises(UsageError, match="Did you mean 'adamw'"):
        make_optimizer(Net(), name="adamww", lr=1.0)
    with pytest.raises(UsageError, match="nothing to train"):
        make_optimizer(Net().requires_grad_(False), lr=1.0)


def test_description_names_the_rule():
    text = describe_optimizer(make_optimizer(Net(), name="lars", lr=0.3, weight_decay=0.5))
    assert "LARS" in text
    assert "  decay: 3 tensors, 12 numbers, lr 0.3, weight decay 0.5\n" in text
    assert "  no decay: 7 tensors, 16 numbers, lr 0.3, weight decay 0, no layer-wise scale" in text


# -- gradients and rates ----------------------------------------------------------------------------------------------


def test_clip_by_hand():
    a, b, idle = param([0.0], [3.0]), param([0.0], [4.0]), param([1.0])
    assert clip_gradients(iter([a, b, idle]), 10.0).item() == 5.0
    assert (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    assert clip_gradients([a, b, idle], 1.0).item() == 5.0
    assert a.grad.item() == pytest.approx(0.6, rel=1e-5) and b.grad.item() == pytest.approx(0.8, rel=1e-5)
    assert clip_gradients([a, b], float("inf")).item() == pytest.approx(1.0, rel=1e-5)
    assert clip_gradients([idle], 1.0).item() == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_leaves_bad_gradients_so_that_they_can_be_named(bad):
    a, b = param([0.0], [bad]), param([0.0], [4.0])
    assert not clip_gradients([a, b], 1.0).isfinite()
    assert not a.grad.isfinite().all() and b.grad.item() == 4.0


def test_scaled_lr():
    assert scaled_lr(0.1, 512) == (pytest.approx(0.2), "lr=0.2: 0.1 x 512/256")
    assert scaled_lr(0.1, 64, 16, "sqrt") == (pytest.approx(0.2), "lr=0.2: 0.1 x sqrt(64/16)")
    assert scaled_lr(0.1, 64, rule="none") == (0.1, "lr=0.1: not scaled with the batch")
    with pytest.raises(UsageError, match="linear"):
        scaled_lr(0.1, 64, rule="linaer")
