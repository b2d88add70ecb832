"""EfficientTrain: the spectrum's corner blocks by hand, the course of sizes, and runs that follow it exactly."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.objectives.supervised import Supervised
from osteon.parts.efficient_train import EfficientTrain, lowfreq_crop
from osteon.parts.flops import count_run, count_step
from osteon.parts.types import Draws, Step
from osteon.train.curriculum import make_curriculum
from osteon.train.loop import Engine, make_fabric, train
from osteon.train.settings import resolve_settings
from osteon.views import make_views

DIGITS = open_source("digits", cache=False).subset(np.arange(64))
COURSE = EfficientTrain(sizes=(0.5, 0.5, 1.0), magnitudes=(1, 9))


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def waves(side: int, most: int) -> Tensor:
    """Images with frequencies up to ``most`` on each side, sampled on ``side`` points: (1, 1, side, side)."""
    generator, t = torch.Generator().manual_seed(1), torch.arange(side) / side
    image = torch.full((side, side), 0.7)
    for u in range(most + 1):
        for v in range(most + 1):
            a, b = torch.randn(2, generator=generator)
            image += a * torch.cos(2 * math.pi * (u * t[:, None] + v * t)) + b * torch.sin(2 * math.pi * (u * t[:, None]
                                                                                                          - v * t))
    return image[None, None]


def test_a_band_limited_image_is_sampled_more_coarsely_and_loses_nothing():
    torch.testing.assert_close(lowfreq_crop(waves(32, 7), (16, 16)), waves(16, 7), rtol=0, atol=1e-4)
    torch.testing.assert_close(lowfreq_crop(waves(15, 2), (6, 6)), waves(6, 2), rtol=0, atol=1e-4)


def test_the_definition_by_a_loop():
    x, n, b = noise(1, 1, 8, 8).double(), 8, 2
    spectrum = np.fft.fft2(x[0, 0].numpy())
    small = np.zeros((4, 4), dtype=complex)
    for i in range(-b, b):
        for j in range(-b, b):
            small[i % 4, j % 4] = spectrum[i % n, j % n]
    expected = np.fft.ifft2(small).real * (4 / n) ** 2
    np.testing.assert_allclose(lowfreq_crop(x, (4, 4))[0, 0].numpy(), expected, atol=1e-6)


def test_mean_size_and_identity():
    x = noise(2, 3, 12, 16)
    small = lowfreq_crop(x, (6, 10))
    assert small.shape == (2, 3, 6, 10) and small.dtype == x.dtype
    torch.testing.assert_close(small.mean((2, 3)), x.mean((2, 3)))
    assert lowfreq_crop(x, (12, 16)) is x and lowfreq_crop(noise(1, 1, 5, 5), (5, 5)).shape[-1] == 5
    torch.testing.assert_close(lowfreq_crop(torch.full((1, 1, 8, 8), 3.0), (4, 4)), torch.full((1, 1, 4, 4), 3.0))


@pytest.mark.parametrize("side", [5, 10, 0])
def test_odd_and_impossible_sides_are_refused(side):
    with pytest.raises(UsageError, match="even number of pixels"):
        lowfreq_crop(noise(1, 1, 8, 8), (side, 4))


def test_the_published_course():
    course, sides, strengths = EfficientTrain(multiple=32), [], []
    for i in range(10):
        step = Step(i, 10)
        sides.append(course.side(224, step))
        strengths.append(course.magnitude(step))
    assert sides == [160] * 6 + [192] * 2 + [224] * 2 and strengths == [1, 1, 3, 3, 5, 5, 7, 7, 9, 9]
    assert [EfficientTrain(multiple=4).side(32, Step(i, 5)) for i in range(5)] == [24, 24, 24, 28, 32]
    assert [EfficientTrain(multiple=16).side(17, Step(i, 5)) for i in range(5)] == [16, 16, 16, 16, 17]


def test_sides_never_fall_and_stages_cover_every_step():
    for total in (1, 4, 7, 100):
        course, at = EfficientTrain(), 0
        assert [course.side(224, Step(i, total)) for i in range(total)] == sorted(
            course.side(224, Step(i, total)) for i in range(total))
        for first, count in course.stages(total):
            assert first == at and count > 0
            assert len({(course.side(224, Step(i, total)), course.magnitude(Step(i, total)))
                        for i in range(first, first + count)}) == 1
            at += count
        assert at == total


@pytest.mark.parametrize(("options", "words"), [
    ({"sizes": (0.5, 0.4, 1.0)}, "do not fall"), ({"sizes": (0.5,)}, "end at 1"), ({"sizes": ()}, "end at 1"),
    ({"sizes": (0.0, 1.0)}, "above 0"), ({"magnitudes": (5, 1)}, "do not fall"), ({"magnitudes": (11,)}, "0 and 10"),
    ({"crop": "blur"}, "lowfreq or resize"), ({"multiple": 3}, "even number")])
def test_bad_courses_are_refused(options, words):
    with pytest.raises(UsageError, match=words):
        EfficientTrain(**options)


def test_views_shrink_and_randaugment_grows_with_the_step():
    def views(index: int, course: EfficientTrain | None, recipe: str = "multicrop", **options):
        made = make_views(recipe, DIGITS.spec, **options)
        draws = Draws(Step(index, 12), torch.arange(64), 64, course=course)
        return made(DIGITS.batch(np.arange(64))["image"], draws)

    assert [v.x.shape[-1] for v in views(0, COURSE, n_local=1, local_size=6)] == [4, 4, 4]
    assert [v.x.shape[-1] for v in views(11, COURSE, n_local=1, local_size=6)] == [8, 8, 6]
    plain = views(3, None, n_local=1)
    for whole, small in zip(plain, views(3, COURSE, n_local=1), strict=True):  # the same views, cut down afterwards
        torch.testing.assert_close(small.x, lowfreq_crop(whole.x, small.x.shape[-2:]))
        assert torch.equal(small.geometry.box, whole.geometry.box)
    levels = [views(i, COURSE, "supervised", magnitude_std=0.0)[0].params["randaugment_level"].abs() for i in (0, 11)]
    assert levels[0].unique().tolist() == pytest.approx([0.1]) and levels[1].unique().tolist() == pytest.approx([0.9])
    small = EfficientTrain(sizes=(0.5, 1.0), crop="resize").shrink(noise(2, 1, 8, 8), Step(0, 2))
    assert small.shape == (2, 1, 4, 4) and not torch.allclose(small, lowfreq_crop(noise(2, 1, 8, 8), (4, 4)))


def make(name: str, backbone: str = "vit_tiny", **options):
    torch.manual_seed(0)
    chosen = {"dim": 16, "depth": 1, "patch": 2} if backbone == "vit_tiny" else {"stride": 2}
    return registry.build("objective", name, build_backbone(backbone, channels=1, size=8, **{**chosen, **options}),
                          DIGITS.spec)


def wishes(method, **more):
    asked = {"steps": 6, "batch_size": 16, "precision": "32", "curriculum": "lowfreq",
             "curriculum_sizes": (0.5, 0.5, 1)}
    return resolve_settings(asked | more, method.recipe, 64, kind=method.backbone.kind)[0]


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("name", ["mae", "simmim", "simclr", "dino", "supervised"])
def test_networks_see_small_images_first(name, positions):
    method = make(name, positions=positions)
    engine, seen = Engine(method.train(), wishes(method), make_fabric("32")), []
    method.backbone.register_forward_pre_hook(lambda _m, x: seen.append(x[0].shape[-1]))
    for index, side in ((0, 4), (3, 4), (4, 8), (5, 8)):
        seen.clear()
        loss, _, _ = engine.run(DIGITS.batch(np.arange(16)), Step(index, 6))
        assert max(seen) == side and math.isfinite(float(loss.total))


def test_the_decoder_of_mae_places_a_smaller_grid_in_the_same_field_of_view():
    method, keep = make("mae"), torch.arange(4)[None]
    small = method.decoder(torch.zeros(1, 4, 16), keep, grid=(2, 2))
    assert small.shape == (1, 4, 4) and method.decoder(torch.zeros(1, 4, 16), keep, grid=(4, 4)).shape == (1, 16, 4)
    # A constant that is added to every position reaches the smaller grid only if that is computed anew.
    with torch.no_grad():
        method.decoder.positions += 1
    torch.testing.assert_close(method.decoder(torch.zeros(1, 4, 16), keep, grid=(2, 2)), small)


def test_what_takes_one_size_only_is_refused():
    with pytest.raises(UsageError, match="one size only"):
        make_curriculum(make("mfm"), wishes(make("mfm")))
    with pytest.raises(UsageError, match="is not one of none, lowfreq, resize"):
        wishes(make("mae"), curriculum="lowfrequency")
    rigid = make("supervised")
    rigid.backbone.forward = lambda x: (_ for _ in ()).throw(ValueError("only 8 px"))  # type: ignore[assignment]
    with pytest.raises(UsageError, match="cannot take images of 4 x 4 pixels: only 8 px"):
        make_curriculum(rigid, wishes(rigid))
    assert make_curriculum(make("mae"), wishes(make("mae"), curriculum="none")) is None


def test_looking_whether_sizes_fit_changes_nothing():
    method = make("supervised", "resnet_tiny").train()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    made = make_curriculum(method, wishes(method))
    assert made is not None and made.multiple == 2 and method.backbone.training and method.backbone.bn1.training
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())


@pytest.mark.parametrize("cut", [2, 4])
def test_a_run_resumed_at_and_within_a_stage_ends_with_the_same_bits(tmp_path, cut):
    def go(folder: str, until: int | None = None):
        method = make("simclr", "resnet_tiny")
        run = RunFolder(tmp_path / folder)
        with run.lock():
            train(method, DIGITS, run, wishes(method), fabric=make_fabric("32"), say=lambda _t: None, until=until)
        return method.state_dict()

    whole = go("whole")
    go("cut", until=cut)
    assert all(torch.equal(v, whole[k]) for k, v in go("cut").items())


def test_micro_batches_see_the_sizes_of_the_whole_batch():
    grads = []
    for pieces in (1, 4):
        method = make("mae")
        engine = Engine(method.train(), wishes(method, accumulate=pieces), make_fabric("32"))
        engine.gradients(DIGITS.batch(np.arange(16)), Step(1, 6))
        grads.append([p.grad for p in engine.params])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_cost_of_a_run_is_the_mean_over_its_stages():
    method = make("supervised")
    settings = wishes(method)
    engine, batch = Engine(method.train(), settings, make_fabric("32")), DIGITS.batch(np.arange(16))
    small, large = (count_step(engine, batch, Step(i, 6)) for i in (0, 5))
    mean = count_run(engine, batch, 6, 0)
    assert mean.forward == pytest.approx((4 * small.forward + 2 * large.forward) / 6, abs=1)
    # 4 of 16 tokens: linear layers on tokens cost a quarter, attention a sixteenth
    assert 0.2 < small.forward / large.forward < 0.27 and small.views > large.views  # the crop is counted


def test_notes_say_what_happens_when():
    (note,) = EfficientTrain(multiple=4).notes(32, 100)
    assert "60 steps at 24 px, 20 steps at 28 px, 20 steps at 32 px" in note and "1, 3, 5, 7, 9" in note
    assert registry.find("training", "efficient_train").rows == (141,)
    assert isinstance(make("supervised"), Supervised)


def test_pretrain_records_and_prints_the_course(tmp_path):
    import yaml

    from osteon.verbs.pretrain import prepare

    def made(**more):
        said: list[str] = []
        found = prepare("digits", **{**dict.fromkeys(("epochs", "accumulate", "precision", "seed", "config", "init",
                                                      "guard")),
                                     "objective": "mae", "backbone": "vit_tiny", "steps": 10, "batch_size": 16,
                                     "settings": {"curriculum": "lowfreq", "curriculum_sizes": "[0.5, 0.5, 1]",
                                                  "limit": 64}, **more}, say=said.append)
        return found, [line for line in said if line.startswith("curriculum=")]

    first, said = made()
    assert said == ["curriculum=lowfreq: 7 steps at 4 px, 3 steps at 8 px (rule: 0.5, 0.5, 1 of the side in equal "
                    "parts, in multiples of 2); RandAugment, where there is any, of strength 1, 3, 5, 7, 9"]
    assert said[0] in first.notes and first.config["train"]["curriculum_sizes"] == [0.5, 0.5, 1.0]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(first.config))
    again, said_again = made(config=tmp_path / "config.yaml", settings={})
    assert again.training == first.training and said_again == said
    with pytest.raises(UsageError, match="one size only"):
        made(objective="mfm")


def test_a_curriculum_is_of_images():
    sound = open_source("tones", cache=False, limit=8)
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=sound.spec.extent, dim=16, depth=1)
    method = registry.build("objective", "mae", network, sound.spec)
    with pytest.raises(UsageError, match="not defined for sound"):
        make_curriculum(method, wishes(method))
