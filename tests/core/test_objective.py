"""The learner: capabilities are checked, the criterion sees float32, frozen encoders stay in evaluation mode."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder, freeze
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, Reduction
from mmssl.core.sample import TokenIds
from tests.contracts.toys import Patches, Words


class Recording(Objective):
    """Notes what its criterion is given."""

    reduction = Reduction.LOCAL

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: dict[str, torch.dtype] = {}
        self.autocast = True

    def needs(self) -> Needs:
        return {"picture": {"crop": 1}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        return {"picture": frozenset({Encoder.TOKENS, Encoder.MASK_DROP})}

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        pooled = ctx.encoders["picture"](batch["picture"]["crop0"]).pooled
        return {"half": pooled.bfloat16(), "exact": pooled.double(), "whole": batch.index}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        self.seen = {name: x.dtype for name, x in latents.items()}
        self.autocast = torch.is_autocast_enabled("cpu")
        loss = (latents["half"] * self.scale).square().mean()
        return LossOutput({"one": loss, "two": 2 * loss.double()})


def batch() -> Batch:
    return Batch({"picture": {"crop0": torch.zeros(2, 3, 8, 8, dtype=torch.uint8)}}, torch.arange(2))


def test_criterion_is_float32_whatever_the_autocast() -> None:
    learner = Learner({"picture": Patches()}, Recording())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, latents = learner(batch(), step=3, total_steps=10)
    assert isinstance(learner.objective, Recording)
    assert learner.objective.seen == {"half": torch.float32, "exact": torch.float64, "whole": torch.int64}
    assert learner.objective.autocast is False
    assert latents["half"].dtype == torch.bfloat16
    assert out.total.dtype == torch.float32
    torch.testing.assert_close(out.total, 3 * out.terms["one"])
    out.total.backward()
    assert learner.objective.scale.grad is not None


def test_metrics_are_made_once_when_they_are_asked_for() -> None:
    asked: list[tuple[bool, bool]] = []
    x = torch.ones(2, 2, requires_grad=True)

    def measure() -> dict[str, Tensor]:
        asked.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {"size": (x @ x).sum()}

    out = LossOutput({"one": x.sum()}, measure)
    assert out.total == 4
    assert not asked
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert out.metrics["size"].dtype == torch.float32
    assert not out.metrics["size"].requires_grad
    assert asked == [(False, False)]
    assert LossOutput({"one": x.sum()}).metrics == {}


def test_encoding_alone_gives_the_latents_and_no_loss() -> None:
    learner = Learner({"picture": Patches()}, Recording())
    none, latents = learner(batch(), encode_only=True)
    assert none is None
    assert isinstance(learner.objective, Recording)
    assert learner.objective.seen == {}
    _, both = learner(batch())
    assert latents.keys() == both.keys()
    assert all(torch.equal(latents[name], x) for name, x in both.items())


def test_context_carries_encoders_and_progress() -> None:
    encoder = Patches()
    ctx = Learner({"picture": encoder}, Recording()).context(5, 20)
    assert ctx.encoders["picture"] is encoder
    assert ctx.progress == 0.25
    assert StepContext({}, 0, 0).progress == 0


def test_missing_and_incapable_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs an encoder for 'picture', and the recipe has \['words'\]"):
        Learner({"words": Words()}, Recording())
    with pytest.raises(
        ValueError, match=r"Words has none of them: it lacks \['mask_drop', 'tokens'\]; encoders of kind vit"
    ):
        Learner({"picture": Words()}, Recording())


@pytest.mark.parametrize(
    ("has", "wanted", "remedy"),
    [
        ({"tokens", "hidden"}, {"tokens", "bidirectional"}, r"lacks \['bidirectional'\]; set causal: false"),
        ({"hidden"}, {"hidden", "tokens"}, r"lacks \['tokens'\]; use one of kind text_transformer$"),
        (set(), {"hidden", "bidirectional"}, "; use one of kind text_transformer with causal: false$"),
        ({"tokens"}, {"tokens", "mask_drop"}, "no encoder of texts drops tokens"),
    ],
)
def test_encoders_of_texts_get_advice_of_their_own(has: set[str], wanted: set[str], remedy: str) -> None:
    words, objective = Words(), Recording()
    words.capabilities, words.token_ids = frozenset(has), TokenIds(None, 30)
    objective.requires = lambda: {"picture": frozenset(wanted)}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=remedy):
        Learner({"picture": words}, objective)


def test_frozen_encoders_stay_in_evaluation_mode() -> None:
    locked, partly, free = Patches(), Patches(), Patches()
    freeze(locked)
    freeze(partly, unlocked_layers=1)
    learner = Learner({"picture": free, "locked": locked, "partly": partly}, Recording()).train()
    assert (free.training, locked.training, partly.training) == (True, False, True)
    assert learner.objective.training
    assert not any(module.training for module in learner.eval().modules())


def test_hooks_do_nothing_unless_overridden() -> None:
    objective, ctx = Recording(), StepContext({})
    before = {name: x.clone() for name, x in objective.state_dict().items()}
    objective.before_update(ctx)
    objective.after_update({}, ctx)
    assert [*objective.refresh([], ctx)] == []
    assert objective.refresh_every() is None
    assert objective.refresh_needs() == {"picture": {"eval": 1}}
    assert all(torch.equal(x, before[name]) for name, x in objective.state_dict().items())
    assert objective.heads() == {}


def test_reductions_are_ordered_by_strength() -> None:
    assert max(Reduction.GATHER, Reduction.LOCAL, Reduction.STATISTIC) is Reduction.STATISTIC
    assert Reduction.LOCAL < Reduction.GATHER < Reduction.STATISTIC
