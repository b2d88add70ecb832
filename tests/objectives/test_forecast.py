"""Direct forecasting: numbers by hand, the reversible normalisation, the rates, and what is kept for later."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.forecast import DirectHead, Forecast, split_window
from osteon.parts.types import DataSpec, Draws, Step
from osteon.parts.windows import own_units, roll_out

STEP = Step(3, 10, 7)


def spec(channels: int = 2, steps: int = 64) -> DataSpec:
    return DataSpec("series", channels, steps, (1.0,) * channels, (2.0,) * channels, 1.0, shape=(steps,),
                    traits={"names": ["a", "b"], "window": steps, "norm": "series"})


def small(backbone: str = "ttm_tiny", channels: int = 2, steps: int = 64, **options) -> Forecast:
    torch.manual_seed(1)
    given = {"dim": 8, "levels": 1, "layers": 1} if backbone == "ttm_tiny" else {"dim": 8, "depth": 1, "heads": 2}
    seen = Forecast.seen((steps,), options)
    network = build_backbone(backbone, channels=channels, size=seen, patch=4, dropout=0.0, **given) if (
        backbone == "ttm_tiny") else build_backbone(backbone, channels=channels, size=seen, patch=4, **given)
    method = Forecast(network, spec(channels, steps), **options)
    shake(method)
    return method.eval()


def windows(n: int = 3, channels: int = 2, steps: int = 64, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"series": torch.randn(n, channels, steps, generator=torch.Generator().manual_seed(seed)).cumsum(-1) + 1,
            "index": torch.arange(n)}


def test_a_window_is_split_into_context_and_horizon():
    assert split_window((64,), 0, 1) == (48, 16) and split_window((432,), 96, 1) == (336, 96)
    assert split_window((64,), 8, 4) == (8, 8) and Forecast.seen((432,), {"horizon": 96}) == (336,)
    for wrong in (((8, 8), 0, 1), ((64,), 64, 1), ((64,), 16, 4), ((64,), 8, 3), ((3,), 0, 1)):
        with pytest.raises(UsageError):
            split_window(*wrong)


def test_own_units_by_hand():
    past = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])  # mean 2 and deviation 1; a flat channel keeps its size
    mean, std = own_units(past)
    assert mean.flatten().tolist() == [2.0, 5.0] and std.flatten().tolist() == [1.0, 1.0]
    # the last value plus one, two steps at a time: 4 5 | 6 7 | 8 9, the last cut off
    ahead = roll_out(lambda known: known[..., -1:] + torch.tensor([1.0, 2.0]), torch.tensor([[[2.0, 3.0]]]), 5)
    assert ahead.flatten().tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]


def test_the_loss_is_the_mean_squared_error_of_the_future_in_the_units_of_the_data():
    method, batch = small(), windows()
    with torch.no_grad():  # a head that says 1 everywhere: the mean plus one deviation of the context
        method.head.out.weight.zero_()
        method.head.out.bias.fill_(1.0)
    encoded = method.encode(batch, Draws.of(batch, STEP))
    for row in range(3):
        total = []
        for channel in range(2):
            x = (batch["series"][row, channel].double() - 1) / 2
            guess = x[:48].mean() + x[:48].std(unbiased=False)
            total += [(value - guess) ** 2 for value in x[48:]]
        torch.testing.assert_close(encoded["loss"][row], torch.stack(total).mean().float())
    torch.testing.assert_close(method.score(encoded, STEP).total, encoded["loss"].mean())
    for loss, power in (("mae", 1), ("huber", None)):
        other = small(loss=loss)
        other.load_state_dict(method.state_dict())
        past, future = other.windows((batch["series"] - 1) / 2, Draws.of(batch, STEP))
        gap = (other.ahead(past)[0] - future).abs()
        want = gap if power else torch.where(gap < 1, gap**2 / 2, gap - 0.5)
        torch.testing.assert_close(other.encode(batch, Draws.of(batch, STEP))["loss"], want.mean((1, 2)))


@pytest.mark.parametrize("backbone", ["ttm_tiny", "vit_tiny"])
def test_shifted_and_scaled_contexts_are_forecast_alike(backbone):
    method, past = small(backbone), windows()["series"][..., :48]
    scale, shift = torch.tensor([3.0, 0.1]).view(1, 2, 1), torch.tensor([-7.0, 40.0]).view(1, 2, 1)
    want = method.forecast(past, 16) * scale + shift
    torch.testing.assert_close(method.forecast(past * scale + shift, 16), want, rtol=1e-3, atol=1e-3)
    flat = method.forecast(torch.full((1, 2, 48), 5.0), 16)
    assert torch.isfinite(flat).all()


def test_the_future_is_not_looked_at():
    method, batch = small(), windows()
    draws = Draws.of(batch, STEP)
    other = dict(batch, series=torch.cat([batch["series"][..., :48], windows(seed=1)["series"][..., 48:]], -1))
    for one, two in zip(method.reconstruct(batch, STEP)[1:], method.reconstruct(other, STEP)[1:], strict=True):
        assert torch.equal(one, two)
    assert torch.equal(method.encode(batch, draws)["features"], method.encode(other, draws)["features"])
    x, corrupted, output = method.reconstruct(batch, STEP)
    torch.testing.assert_close(corrupted[..., 48:], x[..., :48].mean(-1, keepdim=True).expand(-1, -1, 16))
    torch.testing.assert_close(output[..., 48:], method.forecast(x[..., :48], 16))


def test_channels_stay_apart_until_the_decoder_mixes_them():
    past = windows()["series"][..., :48]
    changed = past.clone()
    changed[:, 1] = windows(seed=5)["series"][:, 1, :48]
    apart, mixed = small(decoder_depth=1), small(decoder_depth=1, mix_channels=True)
    assert torch.equal(apart.forecast(changed, 16)[:, 0], apart.forecast(past, 16)[:, 0])
    torch.testing.assert_close(apart.forecast(past.flip(1), 16), apart.forecast(past, 16).flip(1))
    assert not torch.isclose(mixed.forecast(changed, 16)[:, 0], mixed.forecast(past, 16)[:, 0]).all()
    assert apart.head.adapt.out_features == 4  # two thirds of 8, even


def test_the_head_reads_all_tokens_of_a_channel_at_once():
    head = DirectHead(3, 4, 2, 2, 5)  # three tokens of two channels with two numbers each
    tokens = torch.randn(2, 3, 4)
    for channel in range(2):
        flat = tokens[..., 2 * channel:2 * channel + 2].flatten(1)
        torch.testing.assert_close(head(tokens)[:, channel], flat @ head.out.weight.T + head.out.bias)
    whole = DirectHead(3, 4, 1, 2, 5)  # a backbone that reads channels together
    torch.testing.assert_close(whole(tokens), whole.out(tokens.flatten(1)).view(2, 2, 5))


def test_longer_horizons_read_the_forecasts_and_shorter_ones_are_their_beginning():
    method, past = small(), windows()["series"][..., :48]
    first = method.forecast(past, 16)
    assert torch.equal(method.forecast(past, 10), first[..., :10])
    second = method.forecast(torch.cat([past, first], -1)[..., 16:], 16)
    torch.testing.assert_close(method.forecast(past, 40), torch.cat([first, second, method.forecast(
        torch.cat([past, first, second], -1)[..., 32:], 16)], -1)[..., :40])


def test_coarser_rates_average_neighbouring_steps_of_a_longer_past():
    method = small(coarsest=2)  # 32 steps at either rate: 24 and 8
    assert (method.context, method.horizon, method.rates) == (24, 8, (1, 2))
    x = torch.arange(64.0).expand(200, 2, 64)
    draws = Draws(STEP, torch.arange(200), 200)
    past, future = method.windows(x, draws)
    whole = torch.cat([past, future], -1)[:, 0]
    slow = whole[:, 0] < 5
    assert 70 < int(slow.sum()) < 130
    assert torch.equal(whole[~slow][0], torch.arange(32.0, 64))
    assert torch.equal(whole[slow][0], torch.arange(32) * 2 + 0.5)
    assert torch.equal(method.windows(x, draws)[0], past)


def test_inputs_of_the_head_are_dropped_in_training_alone_a_sample_each():
    method, batch = small(head_dropout=0.5), windows(40)
    past = batch["series"][..., :48]
    assert torch.equal(method.ahead(past, Draws.of(batch, STEP))[0], method.ahead(past)[0])
    method.train()
    with torch.no_grad():  # the bias aside, the head sums its inputs: half are lost, the others doubled
        method.head.out.weight.fill_(1.0)
    whole, dropped = method.ahead(past)[0], method.ahead(past, Draws.of(batch, STEP))[0]
    assert not torch.isclose(whole, dropped).any(-1).all()
    part = {k: v[5:7] for k, v in batch.items()}
    again = method.encode(part, Draws.of(batch, STEP).at(torch.tensor([5, 6])))["loss"]
    torch.testing.assert_close(again, method.encode(batch, Draws.of(batch, STEP))["loss"][5:7])


def test_what_is_left_reads_windows_of_the_context_in_their_own_units():
    method = small()
    left = method.exported_data()
    assert left.extent == (48,) and left.size == 48 and left.mean == (0.0, 0.0) and left.std == (1.0, 1.0)
    assert left.traits["norm"] == "window" and left.traits["window"] == 48 and left.traits["names"] == ["a", "b"]
    other = small()
    shake(other, 0.3)
    other.backbone.load_state_dict(method.backbone.state_dict())
    other.load_state_dict(method.kept(), strict=False)
    past = windows()["series"][..., :48]
    assert torch.equal(other.forecast(past, 16), method.forecast(past, 16))
    assert all(name.startswith("head.") for name in method.kept())


def test_refusals():
    for wrong in ({"loss": "mape"}, {"head_dropout": 1.0}, {"mix_channels": True}, {"horizon": 64}):
        with pytest.raises(UsageError):
            small(**wrong)
    with pytest.raises(UsageError, match="keeps several apart"):
        small("vit_tiny", decoder_depth=1, mix_channels=True)
    with pytest.raises(UsageError, match="multiples of 4"):
        small("vit_tiny", horizon=10)
