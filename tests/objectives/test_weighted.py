"""Weighted sums: what children say is merged, scaled and prefixed; hooks reach each child with its own latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from mmssl.core.batch import Batch, Needs
from mmssl.core.context import StepContext
from mmssl.core.encoder import Encoder
from mmssl.core.forward import Network
from mmssl.core.objective import Latents, Learner, LossOutput, Objective, ParameterRule, Reduction
from mmssl.core.plan import Plan
from mmssl.core.schedules import Schedule
from mmssl.objectives.clip import ClipConfig
from mmssl.objectives.mae import MaeConfig
from mmssl.objectives.simclr import SimClrConfig
from mmssl.objectives.weighted import WeightedConfig, WeightedObjective
from tests.contracts import toys

Slip = WeightedConfig[Annotated[ClipConfig | SimClrConfig | MaeConfig, Field(discriminator="kind")]]
SLIP = """{"kind": "weighted", "objectives": {
    "align": {"objective": {"kind": "clip", "pairs": [["picture", "words"]], "views": {"picture": "crop", "words": "tokens"},
                            "embedding": 8, "temperature": 0.07}},
    "own": {"weight": 0.5, "objective": {"kind": "simclr", "modality": "picture", "view": "crop", "temperature": 0.1,
                                         "embedding": 6, "head": {"hidden": 9}}}}}"""


class Noting(Objective):
    """Writes down every hook."""

    def __init__(
        self,
        reduction: Reduction = Reduction.LOCAL,
        modality: str = "picture",
        crops: int = 1,
        capability: str = "tokens",
    ) -> None:
        super().__init__()
        self.reduction, self.modality, self.crops, self.capability = reduction, modality, crops, capability
        self.notes: list[Any] = []
        self.every: int | None = None
        self.layers: Mapping[Network, Mapping[str, int]] = {}

    def needs(self) -> Needs:
        return {self.modality: {"crop": self.crops}}

    def requires(self) -> Mapping[str, frozenset[str]]:
        return {self.modality: frozenset({self.capability})}

    def hidden_layers(self) -> Mapping[Network, Mapping[str, int]]:
        return self.layers

    def encode(self, batch: Batch, ctx: StepContext) -> Latents:
        return {"x": batch["picture"]["crop0"].flatten(1).float(), "x/mean": batch.index.float()}

    def criterion(self, latents: Latents, ctx: StepContext) -> LossOutput:
        return LossOutput(
            {"first": latents["x"].mean(), "second": latents["x/mean"].mean()}, lambda: {"size": latents["x"].std()}
        )

    def before_update(self, ctx: StepContext) -> None:
        self.notes.append(("before", ctx.step))

    def check_views(self, batch: Batch, ctx: StepContext) -> None:
        self.notes.append(("check", len(batch)))

    def after_update(self, latents: Latents, ctx: StepContext) -> None:
        self.notes.append(("after", ctx.step, sorted(latents)))

    def refresh_every(self) -> int | None:
        return self.every

    def refresh(self, batches: Iterable[Batch], ctx: StepContext) -> list[str]:
        self.notes.append(("refresh", [len(batch) for batch in batches]))
        return ["x"]


class Heading(Noting):
    """Brings a head and the scale of a pair."""

    def heads(self) -> Mapping[str, nn.Module]:
        return {self.modality: nn.Identity()}

    def logit_scales(self) -> Mapping[tuple[str, str], Tensor]:
        return {(self.modality, "words"): torch.tensor(5.0)}


def test_a_weight_may_change_over_the_run() -> None:
    learner = Learner(
        {"picture": toys.Patches()},
        WeightedObjective({"a": Noting(), "b": Noting()}, {"a": 2.0, "b": Schedule(0.0, 1.0, stop=10)}),
    )
    for step, weight in ((0, 0.0), (5, 0.5), (12, 1.0)):
        out, latents = learner(toys.batch(4), step, 20)
        assert out.terms["a/first"] == 2 * latents["a/x"].mean()
        torch.testing.assert_close(out.terms["b/first"], weight * latents["b/x"].mean())
        assert out.metrics["b/weight"] == weight
        assert "a/weight" not in out.metrics


@pytest.mark.parametrize(("weight", "said"), [("0", "got 0, wanted above 0"), ("-1", "got -1, wanted at least 0")])
def test_weights_that_would_have_no_effect(weight: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Slip.model_validate_json(SLIP.replace('"weight": 0.5', f'"weight": {weight}'))


def test_needs_requirements_and_reduction_are_merged() -> None:
    a = Noting(Reduction.LOCAL, crops=1)
    b = Noting(Reduction.STATISTIC, crops=3, capability="mask_drop")
    c = Noting(Reduction.GATHER, modality="sound")
    both = WeightedObjective({"a": a, "b": b, "c": c}, {"a": 1.0, "b": 1.0, "c": 1.0})
    assert both.needs() == {"picture": {"crop": 3}, "sound": {"crop": 1}}
    assert both.requires() == {"picture": {"tokens", "mask_drop"}, "sound": {"tokens"}}
    a.layers, b.layers, c.layers = {"teacher": {"picture": 2}}, {"teacher": {"picture": 3}}, {"student": {"sound": 1}}
    assert both.hidden_layers() == {"teacher": {"picture": 3}, "student": {"sound": 1}}
    assert both.reduction is Reduction.STATISTIC
    assert WeightedObjective({"a": a, "c": c}, {"a": 1.0, "c": 1.0}).reduction is Reduction.GATHER
    assert WeightedObjective({"a": a}, {"a": 1.0}).reduction is Reduction.LOCAL


def test_latents_terms_and_metrics_carry_the_name_of_the_child() -> None:
    both = WeightedObjective({"a": Noting(), "ab": Noting()}, {"a": 2.0, "ab": 0.5})
    ctx = StepContext({})
    latents = both.encode(toys.batch(4), ctx)
    assert sorted(latents) == ["a/x", "a/x/mean", "ab/x", "ab/x/mean"]
    out, alone = both.criterion(latents, ctx), Noting().criterion(Noting().encode(toys.batch(4), ctx), ctx)
    assert {name: float(x) for name, x in out.terms.items()} == {
        "a/first": 2 * float(alone.terms["first"]),
        "a/second": 2 * float(alone.terms["second"]),
        "ab/first": 0.5 * float(alone.terms["first"]),
        "ab/second": 0.5 * float(alone.terms["second"]),
    }
    assert {name: float(x) for name, x in out.metrics.items()} == {
        "a/size": float(alone.metrics["size"]),
        "ab/size": float(alone.metrics["size"]),
    }


def test_hooks_reach_every_child() -> None:
    a, b = Noting(), Noting()
    both = WeightedObjective({"a": a, "b": b}, {"a": 1.0, "b": 1.0})
    ctx = StepContext({}, step=7, total_steps=9)
    both.check_views(toys.batch(1), ctx)
    both.before_update(ctx)
    both.after_update(both.encode(toys.batch(4), ctx), ctx)
    assert a.notes == [("check", 1), ("before", 7), ("after", 7, ["x", "x/mean"])]
    assert b.notes == a.notes


def test_children_are_refreshed_when_they_are_due() -> None:
    a, b, never = Noting(), Noting(modality="sound"), Noting()
    both = WeightedObjective({"a": a, "b": b, "never": never}, {"a": 1.0, "b": 1.0, "never": 1.0})
    assert both.refresh_every() is None
    assert both.refresh_needs() == {}
    a.every, b.every = 4, 6
    assert both.refresh_every() == 2
    assert both.refresh_needs() == {"picture": {"eval": 1}, "sound": {"eval": 1}}
    batches = [toys.batch(4), toys.batch(2)]
    made = {step: both.refresh(batches, StepContext({}, step)) for step in range(0, 13, 2)}
    assert made == {0: ["parts.a.x", "parts.b.x"], 2: [], 4: ["parts.a.x"], 6: ["parts.b.x"], 8: ["parts.a.x"], 10: [],
                    12: ["parts.a.x", "parts.b.x"]}  # fmt: skip
    assert a.notes == [("refresh", [4, 2])] * 4
    assert b.notes == [("refresh", [4, 2])] * 3
    assert never.notes == []


def test_two_heads_for_one_modality_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' and 'b' both have a head for 'picture'"):
        WeightedObjective({"a": Heading(), "b": Heading()}, {"a": 1.0, "b": 1.0})
    merged = WeightedObjective(
        {"a": Heading(), "b": Heading(modality="sound"), "c": Noting()}, dict.fromkeys("abc", 1.0)
    )
    assert sorted(merged.heads()) == ["picture", "sound"]
    assert merged.logit_scales() == {("picture", "words"): 5.0, ("sound", "words"): 5.0}


class Ruled(Noting):
    """Has a rule for its parameters."""

    def parameter_groups(self) -> Mapping[str, ParameterRule]:
        return {"head": ParameterRule(rate=0.5)}


def test_rules_of_children_fit_their_parameters() -> None:
    both = WeightedObjective({"a": Ruled(), "b": Noting(), "c": Ruled()}, dict.fromkeys("abc", 1.0))
    assert both.parameter_groups() == {f"parts.{name}.head": ParameterRule(rate=0.5) for name in "ac"}


def build(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    encoders: dict[str, Encoder] = {"picture": toys.Patches(), "words": toys.Words()}
    return Learner(encoders, Slip.model_validate_json(SLIP).build(encoders, Plan.unknown()))


def test_slip_is_clip_and_half_of_simclr_on_one_encoder() -> None:
    learner = build()
    assert isinstance(learner.objective, WeightedObjective)
    assert learner.objective.needs() == {"picture": {"crop": 2}, "words": {"tokens": 1}}
    batch = toys.batch(6)
    out, _ = learner(batch)
    assert list(out.terms) == ["align/picture-words", "own/nt_xent"]
    parts = learner.objective.parts
    total = 0.0
    for name, weight in (("align", 1.0), ("own", 0.5)):
        child = parts[name]
        assert isinstance(child, Objective)
        alone = Learner(dict(learner.encoders.items()), child)  # type: ignore[arg-type]
        total += weight * alone(batch)[0].total.item()
    assert out.total.item() == pytest.approx(total, rel=1e-6)
    assert sorted(learner.objective.heads()) == ["picture", "words"]
    names = [name for name, _ in learner.named_parameters()]
    assert len({id(p) for p in learner.parameters()}) == len(names)
    assert "objective.parts.align.logit_scale.picture-words" in names


def test_the_scale_of_a_child_is_clamped() -> None:
    learner = build()
    scale = learner.get_parameter("objective.parts.align.logit_scale.picture-words")
    with torch.no_grad():
        scale.fill_(9.0)
    _, latents = learner(toys.batch(4))
    learner.objective.after_update(latents, learner.context())
    assert scale.exp().item() == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"objectives": {}}', "at least 1 item"),
        (SLIP.replace('"own"', '"o.n"'), "match pattern"),
        (SLIP.replace("0.5", "0.0"), "wanted above 0"),
        (SLIP.replace('"simclr"', '"simcrl"'), "does not match any of the expected tags: 'clip', 'simclr', 'mae'"),
        (SLIP.replace('"hidden": 9', '"hiden": 9'), r"objectives.own.objective.simclr.head.hiden"),
        (SLIP.replace('"weight"', '"factor"'), "Extra inputs"),
    ],
)
def test_config_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        Slip.model_validate_json(text)


def test_config_round_trips_and_weighs_one_by_default() -> None:
    config = Slip.model_validate_json(SLIP)
    assert [part.weight for part in config.objectives.values()] == [1.0, 0.5]
    assert Slip.model_validate_json(config.model_dump_json()) == config
