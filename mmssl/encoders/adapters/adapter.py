"""Base of the adapters to timm, open_clip and transformers: layer groups, unused parameters, and refusals."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from mmssl.core.compat import BatchNorm, graph_leaves
from mmssl.core.encoder import Encoder, Features

logger = logging.getLogger(__name__)

_BLOCK = re.compile(r"(.*?\.\d+)\.")


class Adapter(Encoder):
    """Encoder that wraps another library's model; subclasses prepare its input and read its output.

    Args:
        model: the other library's model; its state dict is part of the encoder's, under `model.`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self._layers: list[list[str]] = []

    @final
    def connect(self, example: Tensor, last: tuple[str, ...] = (), first: tuple[str, ...] = ()) -> Features:
        """Trace an example through the model: freeze parameters that do not reach the output, and group the others by layer.

        Models of other libraries often have parameters that an encoder does not use. DDP fails on those, so they are frozen and
        logged. The model runs in evaluation mode: no dropout, and running statistics stay the same.

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
        except Exception as error:  # another library's model may raise anything
            raise ValueError(
                f"{type(self.model).__name__} cannot encode an input of shape {list(example.shape)} "
                f"({type(error).__name__}: {error}); choose a model for such inputs"
            ) from error
        used = graph_leaves(features.pooled)
        idle = {name for name, parameter in self.model.named_parameters() if id(parameter) not in used}
        for name in idle:
            self.model.get_parameter(name).requires_grad_(False)
        if idle:
            logger.info(
                "%d parameters of %s do not reach its output and are frozen: %s",
                len(idle),
                type(self).__name__,
                idle,
            )
        self._layers = group_names([name for name, _ in self.model.named_parameters()], idle, last, first)
        self.train()
        return features

    @final
    def offer_hidden(self, example: Tensor, depth: int, *, bidirectional: bool = True) -> None:
        """Declare the capability "hidden" if `forward` returns the outputs of the model's blocks unchanged; else leave it out.

        Libraries differ in what they call hidden states: some normalise the last, some return feature maps of several sizes.
        Therefore one example goes through the model, and hooks compare.

        Args:
            example: a raw view of one sample, without padding.
            depth: number of the model's blocks, which lie in one list.
            bidirectional: whether such blocks attend to later tokens too, as those of all image models do.
        """
        stacks = [part for part in self.model.modules() if isinstance(part, nn.ModuleList | nn.Sequential)]
        outputs: list[Tensor] = []

        def record(module: nn.Module, inputs: object, output: Any) -> None:
            outputs.append(output[0] if isinstance(output, tuple) else output)

        hooks = [block.register_forward_hook(record) for stack in stacks if len(stack) == depth for block in stack]
        self.eval()
        self.depth = depth
        try:
            with torch.no_grad():
                features: Features = self(example, hidden=depth)
        except Exception as error:  # another library's model may raise anything
            logger.info("%s gives no hidden layers (%s: %s)", type(self.model).__name__, type(error).__name__, error)
            features = Features(example)
        finally:
            for hook in hooks:
                hook.remove()
            self.train()
        states = features.hidden or ()
        if len(states) == depth and all(any(_ends_with(output, state) for output in outputs) for state in states):
            self.capabilities |= {Encoder.HIDDEN, *([Encoder.BIDIRECTIONAL] if bidirectional else [])}
        else:
            self.depth = 0

    @final
    def layers(self) -> list[list[nn.Parameter]]:
        """Layer groups: before the blocks (with all unused parameters); each block or stage; after the blocks."""
        return [[self.model.get_parameter(name) for name in names] for names in self._layers]


def group_names(
    names: Iterable[str], idle: Collection[str] = (), last: tuple[str, ...] = (), first: tuple[str, ...] = ()
) -> list[list[str]]:
    """Group parameter names by layer, from input to output: before the numbered blocks, each block, after the blocks.

    Args:
        names: parameter names, in order, of a network whose blocks are numbered (`layers.3.`, `stages.0.`).
        idle: names of unused parameters, which go into the first group.
        last: beginnings of names that belong to the output although they come first.
        first: beginnings of names that belong to the input, at any position.
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
    """Refuse masks (`keep`, `replace`) for an encoder without mask capabilities.

    Raises:
        ValueError: a mask is given.
    """
    if keep is not None or replace is not None:
        given = "keep" if keep is not None else "replace"
        raise ValueError(
            f"{type(encoder).__name__} takes no {given!r}: its capabilities are {sorted(encoder.capabilities) or 'none'}; "
            "use an encoder of kind vit, audio_transformer or space_time, which take masks"
        )


def refuse_checkpointing(module: nn.Module, name: str) -> None:
    """Refuse activation checkpointing of a network with batch norm: its running statistics would be updated twice a step.

    Raises:
        ValueError: the network has batch norm.
    """
    if any(isinstance(part, BatchNorm) for part in module.modules()):
        raise ValueError(
            f"got checkpointing: true for {name!r}, which has batch norm: recomputing it in backward would move its running "
            "statistics twice a step; set checkpointing: false"
        )


def _ends_with(output: Any, tokens: Tensor) -> bool:
    # Whether the last tokens of a block's output are these: prefix tokens stand before them.
    is_sequence = isinstance(output, Tensor) and output.ndim == 3
    return is_sequence and torch.equal(output[:, output.shape[1] - tokens.shape[1] :], tokens)
