"""Parameter groups of an optimizer: which parameters are trained, and by which rule of their objective."""

from __future__ import annotations

from torch import nn

from mmssl.core.objective import Learner, Objective, ParameterRule

PartParameters = dict[str, list[tuple[str, nn.Parameter]]]


def trainable_parts(learner: Learner) -> PartParameters:
    """Trainable parameters by part: one for each encoder, named by its modality, and "objective".

    A shared parameter belongs to the first part.
    """
    modules: dict[str, nn.Module] = {**dict(learner.encoders.items()), "objective": learner.objective}
    found: PartParameters = {part: [] for part in modules}
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                found[part].append((name, parameter))
    return found


def parameter_rules(objective: Objective) -> dict[str, tuple[str, ParameterRule]]:
    """Name of a parameter of the objective -> the entry of its `parameter_groups` that counts for it, if there is one.

    Raises:
        ValueError: an entry fits no parameter.
    """
    rules = sorted(objective.parameter_groups().items(), key=lambda entry: len(entry[0]))
    names = [name for name, _ in objective.named_parameters()]
    found: dict[str, tuple[str, ParameterRule]] = {}
    for prefix, rule in rules:
        fitting = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
        if not fitting:
            raise ValueError(
                f"{type(objective).__name__}.parameter_groups(): got {prefix!r}, wanted the beginning of a parameter's name, "
                f"which are {names}"
            )
        found |= dict.fromkeys(fitting, (prefix, rule))
    return found
