"""What the adapters to other libraries share: grouping, unused parameters, and refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from mmssl.core.compat import BatchNorm
from mmssl.core.encoder import Encoder, Features

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"(.*?\.\d+)\.")


class Adapter(Encoder):
    """An encoder around another library's model; subclasses say what goes in and how the output is read.

    Args:
        model: the foreign model; its state is the encoder's, under `model.`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self._layers: list[list[str]] = []

    @final
    def connect(self, example: Tensor, last: tuple[str, ...] = (), first: tuple[str, ...] = ()) -> Features:
        """Run an example, and find out from its graph which parameters matter and in which order they come.

        Foreign models often carry parameters that this use of them leaves idle. Data parallelism fails on those, so they are taken
        out of training here, and logged. Evaluation mode is used, so nothing is drawn and no statistics move.

        Args:
            example: a raw view of one sample.
            last: beginnings of names that belong to the output although the model registers them first.
            first: beginnings of names that belong to the input although the model registers them last, or numbers their parts.

        Returns:
            The features of the example.

        Raises:
            ValueError: the model cannot encode it.
        """
        self.eval()
        try:
            with torch.enable_grad():
                features: Features = self(example)
        except ValueError:
            raise
        except Exception as error:  # the model is foreign, and raises whatever it stumbles over
            raise ValueError(
                f"{type(self.model).__name__} cannot encode an input of shape {list(example.shape)} "
                f"({type(error).__name__}: {error}): choose a model that is made for such inputs"
            ) from error
        used = _leaves(features.pooled)
        idle = {name for name, parameter in self.model.named_parameters() if id(parameter) not in used}
        for name in idle:
            self.model.get_parameter(name).requires_grad_(False)
        if idle:
            logger.info(
                "%d tensors of %s do not reach its output and stay as they are: %s",
                len(idle),
                type(self).__name__,
                idle,
            )
        self._layers = group_names([name for name, _ in self.model.named_parameters()], idle, last, first)
        self.train()
        return features

    @final
    def layers(self) -> list[list[nn.Parameter]]:
        """What precedes the blocks (and all idle parameters); each block or stage; what follows them."""
        return [[self.model.get_parameter(name) for name in names] for names in self._layers]


def group_names(
    names: Iterable[str], idle: Collection[str] = (), last: tuple[str, ...] = (), first: tuple[str, ...] = ()
) -> list[list[str]]:
    """All names once, from input to output: what precedes the numbered blocks, each block, what follows them.

    Args:
        names: of a network whose blocks bear numbers in their names (`layers.3.`, `stages.0.`), in their order.
        idle: names that count to the input, wherever they stand.
        last: beginnings of names that belong to the output although they stand first.
        first: beginnings of names that belong to the input, wherever they stand.
    """
    stem: list[str] = []
    tail: list[str] = []
    blocks: dict[str, list[str]] = {}
    for name in names:
        block = _BLOCK.match(name)
        if name in idle or name.startswith(first or "\0"):
            stem.append(name)
        elif name.startswith(last or "\0"):
            tail.append(name)
        elif block is not None:
            blocks.setdefault(block[1], []).append(name)
        else:
            (tail if blocks else stem).append(name)
    return [group for group in (stem, *blocks.values(), tail) if group]


def refuse_masks(encoder: Encoder, keep: Tensor | None, replace: tuple[Tensor, Tensor] | None) -> None:
    """Refuse masks for an encoder that has no capability for them.

    Raises:
        ValueError: there is a mask.
    """
    if keep is not None or replace is not None:
        given = "keep" if keep is not None else "replace"
        raise ValueError(
            f"{type(encoder).__name__} takes no {given!r}: its capabilities are {sorted(encoder.capabilities) or 'none'}; "
            "transformers of our own (kinds vit, audio_transformer, space_time) take masks"
        )


def refuse_checkpointing(module: nn.Module, name: str) -> None:
    """Refuse to recompute a network with batch norm in backward: its running statistics would move twice a step.

    Raises:
        ValueError: the network has batch norm.
    """
    if any(isinstance(part, BatchNorm) for part in module.modules()):
        raise ValueError(
            f"checkpointing: true does not go with the batch norm of {name!r}: recomputing it in backward would move its running "
            "statistics twice a step; set checkpointing: false"
        )


def _leaves(output: Tensor) -> set[int]:
    # ids of the parameters that the graph of `output` ends in
    found: set[int] = set()
    seen = set()
    stack = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # torch's AccumulateGrad node, which has no public class to ask for
            found.add(id(node.variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return found
