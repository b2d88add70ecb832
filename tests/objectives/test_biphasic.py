"""Two phases: where the switch lies, what changes there and what does not."""

from __future__ import annotations

import pytest
import torch
from lightning_fabric import Fabric
from tests.objectives.texts import SPEC, draws_of, network, shaken, texts

from osteon.core.errors import UsageError
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.objectives.biphasic import Biphasic
from osteon.objectives.clm import CLM
from osteon.objectives.mlm import MLM
from osteon.parts.types import Step
from osteon.train.loop import train
from osteon.train.settings import resolve_settings


def make(**options) -> Biphasic:
    return shaken(Biphasic(network(), SPEC, **options))


def test_the_switch_is_at_the_rounded_share_of_the_steps():
    for share, total, first in ((0.25, 10, 2), (0.5, 10, 5), (0.75, 42, 32), (0.0, 10, 0), (1.0, 10, 10)):
        phases = [make(share=share).causal(Step(i, total)) for i in range(total)]
        assert phases == [True] * first + [False] * (total - first)


def test_each_phase_is_the_objective_of_its_name():
    both, batch = make(share=0.5, ratio=0.4), texts()
    for index, other in ((4, shaken(CLM(network(), SPEC))), (5, shaken(MLM(network(), SPEC, ratio=0.4)))):
        step = Step(index, 10, 3)
        ours, theirs = both(batch, step), other(batch, step)
        assert ours.total.item() == theirs.total.item() and ours.parts["causal"].item() == float(index < 5)


def test_the_future_is_hidden_in_the_first_phase_only():
    objective = make(share=0.5, ratio=0.05, masked=0.0)  # nothing is covered: only attention may hide
    tokens = texts(20)["text"][:, 0].long()
    changed = tokens.clone()
    changed[0, 19] = 3 + (tokens[0, 19] - 2) % 10
    causal = [objective.predict(t, draws_of(1, 4))[0][0, :19] for t in (tokens, changed)]
    assert torch.equal(causal[0], causal[1])
    drawn = objective.hide(tokens, draws_of(1, 5))[0]
    assert 19 not in drawn.tolist()[0]
    free = [objective.predict(t, draws_of(1, 5))[0] for t in (tokens, changed)]
    assert ((free[0] - free[1]).abs().amax(-1) > 1e-6).all()


def go(folder, until: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    data = open_source("sentences:train", cache=False, limit=64)
    torch.manual_seed(seed)
    objective = Biphasic(network(data.spec.traits["vocabulary"], data.spec.extent[0]), data.spec, share=0.5)
    settings, _ = resolve_settings({"steps": 6, "batch_size": 8, "checkpoint_every": 100, "precision": "32",
                                    "log_every": 1}, objective.recipe, len(data), kind="tokens")
    run = RunFolder(folder)
    with run.lock():
        train(objective, data, run, settings, fabric=Fabric(accelerator="cpu", devices=1), until=until,
              say=lambda _text: None)
    return objective.state_dict()


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_run_stopped_before_at_or_after_the_switch_ends_bit_for_bit_the_same(tmp_path, at):
    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", until=at)
    resumed = go(tmp_path / "parts", seed=9)
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_impossible_share():
    with pytest.raises(UsageError, match="share of the steps"):
        make(share=1.5)
