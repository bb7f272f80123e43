"""Parameter groups against open_clip's rules, rates by layer and by encoder, and options that would change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from mmssl.core.errors import RecipeError
from mmssl.core.objective import Learner, ParameterRule
from mmssl.core.parameters import DecayRule, is_decayed
from mmssl.core.plan import Plan
from mmssl.core.schedules import Schedule
from mmssl.training.steps.groups import trainable_parts
from mmssl.training.steps.lars import Lars
from mmssl.training.steps.optim import AdamWConfig, LarsConfig, SgdConfig, UpdateSchedule, current_rate
from tests.training.toys import Agree, Tower, make_learner, make_run

CONSTANT = Schedule.constant(1.0)


def config(**options: Any) -> AdamWConfig:
    return AdamWConfig(lr=0.01, **options)


def decayed_names(optimizer: torch.optim.Optimizer) -> dict[bool, set[str]]:
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for group in optimizer.param_groups:
        assert group["weight_decay"] in (0.0, 0.2)
        found[group["weight_decay"] > 0] |= set(group["param_names"])
    return found


@pytest.fixture(scope="module")
def open_clip_model() -> nn.Module:
    """A small CLIP with open_clip's parameter names: a vision transformer and a text transformer."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    words = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
    return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=words)


class Whole(Tower):
    """An encoder that holds a foreign model, to run the groups over its names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def groups_of(model: nn.Module, rule: DecayRule) -> dict[bool, set[str]]:
    learner = Learner({"a": Whole(model), "b": Tower()}, Agree())
    mine = decayed_names(config(decay_rule=rule).build(learner))
    return {key: {n.removeprefix("a.model.") for n in names if n.startswith("a.model.")} for key, names in mine.items()}


def test_groups_equal_those_of_open_clip_3(open_clip_model: nn.Module) -> None:
    def exclude(n: str, p: nn.Parameter) -> bool:  # the rule of open_clip_train 3.3, main.py
        return p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n

    theirs = {key: {n for n, p in open_clip_model.named_parameters() if exclude(n, p) != key} for key in (True, False)}
    mine = groups_of(open_clip_model, "open_clip_3")
    assert mine == theirs
    assert {"positional_embedding", "visual.positional_embedding", "token_embedding.weight"} <= mine[True]
    assert {"logit_scale", "visual.class_embedding", "ln_final.weight"} <= mine[False]


def test_groups_equal_those_of_open_clip_4(open_clip_model: nn.Module) -> None:
    declared: set[str] = set()  # open_clip 4 asks every module for its declaration; 3.3 has the same ones
    for path, module in open_clip_model.named_modules():
        declare: Callable[[], set[str]] | None = getattr(module, "no_weight_decay", None)
        declared |= {f"{path}.{n}" if path else n for n in declare()} if declare else set()
    names = dict(open_clip_model.named_parameters())
    theirs = {n for n, p in names.items() if p.ndim <= 1 or n in declared}
    mine = groups_of(open_clip_model, "open_clip_4")
    assert mine == {False: theirs, True: set(names) - theirs}
    assert {"positional_embedding", "visual.positional_embedding"} <= mine[False]


@pytest.mark.parametrize(
    ("name", "shape", "three", "four"),
    [
        ("blocks.0.attn.relative_position_bias_table", (4, 2), False, False),
        ("embeddings.position_embeddings.weight", (4, 2), True, False),
        ("embeddings.word_embeddings.weight", (4, 2), True, True),
        ("cls_token", (1, 1, 4), True, False),
        ("my_cls_token_projection", (4, 4), True, True),
        ("norm.weight", (4,), False, False),
        ("temperature", (), False, False),
    ],
)
def test_single_names(name: str, shape: tuple[int, ...], three: bool, four: bool) -> None:
    parameter = nn.Parameter(torch.zeros(shape))
    assert is_decayed(name, parameter, "open_clip_3") is three
    assert is_decayed(name, parameter, "open_clip_4") is four


def test_a_modality_may_be_called_anything() -> None:
    """Names are looked at without the modality: 'walnut' holds 'ln' and is decayed all the same."""
    learner = Learner({"a": Tower(), "b": Tower(), "walnut": Tower()}, Agree())
    assert "walnut.first.weight" in decayed_names(config().build(learner))[True]


def test_every_trainable_parameter_is_in_one_group() -> None:
    learner = make_learner()
    learner.encoders["b"].first.requires_grad_(False)
    optimizer = config().build(learner)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in learner.parameters() if p.requires_grad]
    assert len(held) == len(trainable) == 11
    assert {id(p) for p in held} == {id(p) for p in trainable}
    assert [group["name"] for group in optimizer.param_groups] == [
        "a/decay", "a/no_decay", "b/no_decay", "b/decay", "objective/no_decay", "objective/decay",
    ]  # fmt: skip
    options = {(group["betas"], group["eps"], group["fused"]) for group in optimizer.param_groups}
    assert options == {((0.9, 0.98), 1e-6, True)}
    lines = UpdateSchedule(CONSTANT, Schedule(0.04, 0.4, stop=10)).describe(optimizer).splitlines()
    assert lines[0] == "a/decay: 2 tensors, 72 parameters, peak lr 0.01, weight decay 0.04 to 0.4"
    assert lines[1] == "a/no_decay: 3 tensors, 18 parameters, peak lr 0.01, weight decay 0"
    assert sum(len(named) for named in trainable_parts(learner).values()) == 11


def test_an_encoder_of_two_modalities_is_trained_once() -> None:
    tower = Tower()
    optimizer = config().build(Learner({"a": tower, "b": tower}, Agree()))
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert len(names) == 8
    assert not [name for name in names if name.startswith("b.")]


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}


def test_layer_decay_and_multipliers_set_the_rate_of_each_parameter() -> None:
    optimizer = config(layer_decay=0.5, encoder_lr={"b": 0.1}).build(make_learner())
    UpdateSchedule(Schedule.constant(0.8), Schedule.constant(0.2)).apply(optimizer, 0)
    found = rates(optimizer)
    expected = {"a.first.weight": 0.002, "a.norm.bias": 0.004, "a.last.weight": 0.008, "b.first.bias": 0.0002,
                "b.last.weight": 0.0008, "objective.head.weight": 0.008, "objective.log_scale": 0.008}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "a/decay/x0.25" in [group["name"] for group in optimizer.param_groups]


def test_an_encoder_whose_layers_miss_a_parameter_is_refused() -> None:
    learner = make_learner()
    learner.encoders["a"].extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"Tower\.layers\(\) must hold every parameter once, and misses \['extra'\]"):
        config(layer_decay=0.5).build(learner)


@pytest.mark.parametrize(
    ("frozen", "options", "complaint"),
    [
        ("ab", {"layer_decay": 0.5}, "layer_decay has no effect: every encoder is frozen"),
        ("a", {"encoder_lr": {"a": 0.5}}, r"encoder_lr\.a has no effect: that encoder is frozen"),
        ("", {"encoder_lr": {"aa": 0.5}}, r"names 'aa', and the encoders are \['a', 'b'\], did you mean 'a'"),
        ("abo", {}, "nothing to train"),
    ],
)
def test_options_without_effect_are_refused(frozen: str, options: dict[str, Any], complaint: str) -> None:
    learner = make_learner()
    for name in frozen:
        (learner.objective if name == "o" else learner.encoders[name]).requires_grad_(False)
    with pytest.raises(RecipeError, match=complaint):
        config(**options).build(learner)


@pytest.mark.parametrize(
    "wrong",
    [{"encoder_lr": {"a": 0.0}}, {"betas": (0.9, 1.0)}, {"layer_decay": 1.0}, {"lr": 0.0}, {"weight_decay": -0.1}],
)
def test_configs_refuse_what_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdamWConfig(**{"lr": 0.1, **wrong})


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValueError, match="nesterov: got true without momentum"):
        SgdConfig(lr=0.1, momentum=0.0, nesterov=True)


def test_weight_decay_follows_its_schedule_where_it_applies() -> None:
    config = AdamWConfig(lr=0.1, weight_decay={"kind": "cosine", "start": 0.04, "final": 0.4})  # type: ignore[arg-type]
    optimizer = config.build(make_learner())
    plan = Plan(10, batch_size=1, samples=10)
    updates = UpdateSchedule(CONSTANT, plan.schedule(config.weight_decay, "optimizer.weight_decay"))
    for step, decay in ((0, 0.04), (5, 0.22), (10, 0.4)):
        updates.apply(optimizer, step)
        found = {group["decayed"]: group["weight_decay"] for group in optimizer.param_groups}
        assert found == pytest.approx({True: decay, False: 0.0})


def test_a_schedule_of_weight_decay_that_is_longer_than_the_run_is_named(tmp_path: Path) -> None:
    decay = {"kind": "linear", "start": 0.1, "final": 0.2, "over": "11 steps"}
    with pytest.raises(
        RecipeError, match=r"^optimizer\.weight_decay\.over '11 steps' .* longer than the run of 10 steps"
    ):
        make_run(tmp_path, optimizer={"kind": "sgd", "lr": 0.1, "weight_decay": decay})


def test_sgd_is_that_of_torch_over_the_same_groups() -> None:
    config = SgdConfig(lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.05, decay_rule="all")
    optimizer = config.build(make_learner())
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["name"] for group in optimizer.param_groups] == ["a/decay", "b/decay", "objective/decay"]
    options = {(g["momentum"], g["nesterov"], g["weight_decay"], g["dampening"]) for g in optimizer.param_groups}
    assert options == {(0.8, True, 0.05, 0)}


def test_lars_scales_what_is_decayed_and_vectors_have_their_own_rate() -> None:
    optimizer = LarsConfig(lr=0.5, trust=0.02, vector_lr=0.1, weight_decay=1e-6).build(make_learner())
    assert isinstance(optimizer, Lars)
    assert optimizer.defaults["trust"] == 0.02
    UpdateSchedule(CONSTANT, Schedule.constant(1e-6)).apply(optimizer, 0)
    found = {(g["decayed"], g["adapted"], g["weight_decay"], round(g["lr"], 9)) for g in optimizer.param_groups}
    assert found == {(True, True, 1e-6, 0.5), (False, False, 0.0, 0.05)}


class Ruled(Agree):
    """Its head has a rule; the bias of the head has another one."""

    def __init__(self, rules: Mapping[str, ParameterRule]) -> None:
        super().__init__()
        self.rules = rules

    def parameter_groups(self) -> Mapping[str, ParameterRule]:
        return self.rules


def ruled(**rules: ParameterRule) -> Learner:
    named = {name.replace("_", "."): rule for name, rule in rules.items()}
    return Learner({"a": Tower(), "b": Tower()}, Ruled(named))


def test_the_rate_of_a_rule_is_constant() -> None:
    optimizer = config(weight_decay=0.5).build(ruled(head=ParameterRule(constant_rate=True)))
    updates = UpdateSchedule(Schedule(1.0, 0.0, stop=10), Schedule.constant(0.5))
    for step, lr in ((0, 0.01), (5, 0.005), (10, 0.0)):
        updates.apply(optimizer, step)
        found = rates(optimizer)
        constant = {"objective.head.weight", "objective.head.bias"}
        assert {found.pop(name) for name in constant} == {0.01}
        assert set(found.values()) == {lr}
        assert current_rate(optimizer) == lr
    lines = updates.describe(optimizer).splitlines()
    assert "objective/head/decay: 1 tensors, 36 parameters, constant lr 0.01, weight decay 0.5" in lines


def test_the_longest_rule_counts_and_decay_can_be_turned_off() -> None:
    learner = ruled(head=ParameterRule(weight_decay=False, rate=0.5), head_bias=ParameterRule(rate=0.1))
    optimizer = LarsConfig(lr=1.0, weight_decay=0.5, vector_lr=0.1).build(learner)
    UpdateSchedule(CONSTANT, Schedule.constant(0.5)).apply(optimizer, 0)
    found = {name: group for group in optimizer.param_groups for name in group["param_names"]}
    head, bias, other = (found[f"{name}"] for name in ("objective.head.weight", "objective.head.bias", "a.last.weight"))
    assert [(g["lr"], g["weight_decay"], g["adapted"]) for g in (head, bias, other)] == [
        (0.5, 0.0, True), (pytest.approx(0.01), 0.0, False), (1.0, 0.5, True),
    ]  # fmt: skip
    assert head["name"] == "objective/head/no_decay/x0.5"


def test_a_rule_for_no_parameter_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"Ruled\.parameter_groups\(\): got 'hea', wanted the beginning of a parameter's name"
    ):
        config().build(ruled(hea=ParameterRule()))
