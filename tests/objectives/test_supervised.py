from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import STEP, assert_slope, draws_of, images, normal, resnet, vit
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.objectives.supervised import Supervised, classification_loss
from osteon.parts.types import DataSpec, Draws, Step


def spec(channels: int = 1, size: int = 8, classes: int = 3, multi: bool = False,
         weights: tuple[float, ...] = ()) -> DataSpec:
    return DataSpec("image", channels, size, (0.5,) * channels, (0.25,) * channels, num_classes=classes,
                    multi_label=multi, class_weights=weights)


def labelled(n: int = 8, channels: int = 1, size: int = 8, classes: int = 3) -> dict[str, Tensor]:
    return images(n, channels, size) | {"label": torch.arange(n) % classes}


def small(**options) -> Supervised:
    return Supervised(vit(), spec(), **options)


HARD = F.one_hot(torch.tensor([2, 0, 1, 2]), 3).float()
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def test_hand_computed_cross_entropy():
    # Logits (log 3, 0): shares 3/4, 1/4. Target half and half: (log 4/3 + log 4) / 2.
    logits, target = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.5, 0.5]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert classification_loss(logits, target, "ce").item() == pytest.approx(expected, rel=1e-5)


def test_hand_computed_binary_cross_entropy():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2; targets 1, 0: mean of log 4/3 and log 2.
    logits, target = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[1.0, 0.0]])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert classification_loss(logits, target, "bce").item() == pytest.approx(expected, rel=1e-5)
    weighted = classification_loss(logits, target, "bce", torch.tensor([3.0, 1.0]))
    assert weighted.item() == pytest.approx((3 * math.log(4 / 3) + math.log(2)) / 2, rel=1e-5)


def test_hard_labels_give_torchs_cross_entropy():
    logits = normal(4, 3)
    for weights in (None, WEIGHTS):
        expected = F.cross_entropy(logits, HARD.argmax(1), weight=weights)
        torch.testing.assert_close(classification_loss(logits, HARD, "ce", weights), expected)


def test_threshold_makes_every_class_of_a_mixture_present():
    logits, mixed = normal(2, 3), torch.tensor([[0.7, 0.3, 0.0], [0.9, 0.1, 0.0]])
    present = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(classification_loss(logits, mixed, "bce", threshold=0.2),
                               classification_loss(logits, present, "bce"))
    assert classification_loss(logits, mixed, "bce") != classification_loss(logits, present, "bce")
    torch.testing.assert_close(classification_loss(logits, present, "bce", threshold=0.0),  # 0 is not above 0
                               classification_loss(logits, present, "bce"))


def test_no_knowledge_costs_the_logarithm_of_the_classes():
    assert classification_loss(torch.zeros(4, 3), HARD, "ce").item() == pytest.approx(math.log(3), rel=1e-5)
    assert classification_loss(torch.zeros(4, 3), HARD, "bce").item() == pytest.approx(math.log(2), rel=1e-5)


def test_sample_and_class_order_and_a_common_shift_do_not_matter():
    logits, rows, columns = normal(4, 3), [2, 0, 3, 1], [1, 2, 0]
    for kind in ("ce", "bce"):
        expected = classification_loss(logits, HARD, kind, WEIGHTS)
        torch.testing.assert_close(classification_loss(logits[rows], HARD[rows], kind, WEIGHTS), expected)
        torch.testing.assert_close(
            classification_loss(logits[:, columns], HARD[:, columns], kind, WEIGHTS[columns]), expected)
    torch.testing.assert_close(classification_loss(logits + 5, HARD, "ce"), classification_loss(logits, HARD, "ce"))


def test_gradient_of_both_losses():
    for kind in ("ce", "bce"):
        assert_slope(lambda x, kind=kind: classification_loss(x, HARD, kind, WEIGHTS), normal(4, 3))


def test_labels_become_smoothed_shares():
    objective = small(smoothing=0.3)
    torch.testing.assert_close(objective.targets(torch.tensor([1])), torch.tensor([[0.1, 0.8, 0.1]]))
    assert torch.equal(small().targets(torch.tensor([2, 0])), torch.tensor([[0.0, 0, 1], [1, 0, 0]]))
    several = torch.tensor([[1, 0, 1]], dtype=torch.uint8)
    assert torch.equal(small().targets(several), torch.tensor([[1.0, 0, 1]]))


def test_class_weights_are_used_on_request():
    data, batch = spec(weights=(0.5, 2.0, 1.0)), labelled()
    plain, weighted = (Supervised(vit(), data, weighting=w).eval() for w in ("none", "auto"))
    weighted.load_state_dict(plain.state_dict())
    encoded = plain.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(plain.score(encoded, STEP).total, F.cross_entropy(encoded["logits"], batch["label"]))
    torch.testing.assert_close(weighted.score(encoded, STEP).total,
                               F.cross_entropy(encoded["logits"], batch["label"], weight=WEIGHTS))


def test_score_uses_the_loss_that_was_asked_for():
    batch = labelled()
    for options, kind, threshold in (({}, "ce", -1.0), ({"loss": "bce"}, "bce", -1.0),
                                     ({"loss": "bce", "mixup": 0.5, "threshold": 0.2}, "bce", 0.2)):
        objective = small(**options).eval()
        encoded = objective.encode(batch, Draws.of(batch, STEP))
        result = objective.score(encoded, STEP)
        torch.testing.assert_close(
            result.total, classification_loss(encoded["logits"], encoded["targets"], kind, threshold=threshold))
        assert kind in result.parts


def test_accuracy_counts_main_labels_or_every_yes_and_no():
    logits = torch.tensor([[2.0, -1, -1], [-1, 2, 1], [-1, 0.5, -2], [0.1, -1, 3]])  # says 0, 1, 1, 2; true 2, 0, 1, 2
    main = small().score({"logits": logits, "targets": HARD}, STEP).parts["train_accuracy"]
    assert main.item() == 0.5
    several = Supervised(vit(), spec(multi=True))
    result = several.score({"logits": logits, "targets": torch.tensor([[1.0, 1, 0]] * 4)}, STEP)
    assert result.parts["train_accuracy"].item() == pytest.approx((2 + 1 + 2 + 1) / 12)
    assert "bce" in result.parts


def test_mixing_blends_images_and_labels_alike():
    objective, batch = small(mixup=1.0, augment="none").eval(), labelled()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    targets = encoded["targets"]
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    mixed = ((targets > 0) & (targets < 1)).any(1)
    assert mixed.any()
    plain, own = objective.views(batch["image"], Draws.of(batch, STEP))[0].x, F.one_hot(batch["label"], 3).float()
    x, expected = objective.mix(plain, own, Draws.of(batch, STEP))
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(encoded["logits"], objective.head(objective.backbone(x).pooled))
    hard = small(augment="none").encode(batch, Draws.of(batch, STEP))["targets"]
    assert torch.equal(hard, own)


@pytest.mark.parametrize("options", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0, "smoothing": 0.1}])
def test_partners_elsewhere_in_the_batch_are_mixed_alike(options: dict):
    objective, batch = small(**options).eval(), labelled()
    for index in range(3):
        step = Step(index, 10, 3)
        whole = objective.encode(batch, draws_of(batch, range(8), step))
        for rows in ([0, 1, 2], [5, 3], [7]):
            part = objective.encode({k: v[rows] for k, v in batch.items()}, draws_of(batch, rows, step))
            for key in whole:
                torch.testing.assert_close(part[key], whole[key][rows], rtol=1e-4, atol=1e-5)


def test_a_head_alone_trains_nothing_else():
    objective = Supervised(resnet(), spec(3, 32), head_only=True).train()
    before = {k: v.clone() for k, v in objective.backbone.state_dict().items()}
    objective(labelled(8, 3, 32), STEP).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.backbone.parameters())
    assert all(torch.equal(v, before[k]) for k, v in objective.backbone.state_dict().items())  # running statistics too
    assert objective.head.weight.grad.any()


def test_gradient_reaches_every_parameter_and_features_carry_none():
    for objective, batch in ((small(), labelled()), (Supervised(resnet(), spec(3, 32)), labelled(8, 3, 32))):
        encoded = objective.train().encode(batch, Draws.of(batch, STEP))
        assert not encoded["features"].requires_grad
        objective.score(encoded, STEP).total.backward()
        for name, p in objective.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any(), name


@pytest.mark.parametrize("augment", ["crop_flip", "randaugment", "simclr", "none"])
def test_one_view_of_the_recipe_that_was_asked_for(augment: str):
    objective, batch = small(augment=augment, crop_min=0.6), labelled()
    (view,) = objective.views(batch["image"], Draws.of(batch, STEP))
    assert ("randaugment_op" in view.params) == (augment == "randaugment")
    assert ("jitter" in view.params) == (augment == "simclr")
    area = (view.geometry.box[:, 2:] - view.geometry.box[:, :2]).prod(1)
    assert (area == 1).all() if augment == "none" else area.min() < 1 and area.min() > 0.45
    still = small(augment=augment, flip=False)
    assert not still.views(batch["image"], Draws.of(batch, STEP))[0].geometry.flip.any()


def test_predictions_are_probabilities():
    x = normal(4, 1, 8, 8)
    one, many = small().eval(), Supervised(vit(), spec(multi=True)).eval()
    torch.testing.assert_close(one.predict(x), one.head(one.backbone(x).pooled).softmax(-1))
    torch.testing.assert_close(many.predict(x), many.head(many.backbone(x).pooled).sigmoid())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(UsageError, match="labelled"):
        Supervised(vit(), spec(classes=0))
    with pytest.raises(UsageError, match="one label"):
        Supervised(vit(), spec(multi=True), loss="ce")
