"""The state of one training step that objectives read: progress, encoders and teachers, random numbers equal on all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from mmssl.core.batch import Batch
from mmssl.core.encoder import Encoder, Features
from mmssl.core.forward import Network, Request, SharedForward
from mmssl.core.seeding import fold


@dataclass(frozen=True)
class StepContext:
    """State of one training step that objectives read: step number, run length, encoders, teachers, shared random numbers.

    Attributes:
        encoders: modality -> encoder.
        step: 0-based optimizer step.
        total_steps: length of the run in steps.
        teachers: modality -> teacher of that encoder, for objectives that ask for one.
        seed: of the run.
        optional: modalities that samples may lack.
        whole: modalities of which some objective reads tokens.
        layers: network -> modality -> most hidden layers that some objective reads.
    """

    encoders: Mapping[str, Encoder]
    step: int = 0
    total_steps: int = 1
    teachers: Mapping[str, nn.Module] = field(default_factory=dict)
    seed: int = 0
    optional: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    layers: Mapping[Network, Mapping[str, int]] = field(default_factory=dict)

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1)."""
        return self.step / max(1, self.total_steps)

    def features(
        self,
        batch: Batch,
        modality: str,
        views: Sequence[str],
        *,
        network: Network = "student",
        keep: Sequence[Tensor] | None = None,
        replace: tuple[Sequence[Tensor], Tensor] | None = None,
        hidden: int = 0,
        mlps: bool = False,
        pooled_only: bool = False,
        together: bool = True,
    ) -> list[Features]:
        """Encode views, each once in a step, whichever objectives ask for it: one `Features` for each view.

        Views of equal shape go through the encoder in one call. Rows of samples that lack the modality are zeros, and are not
        encoded; `presence` says which.

        Args:
            batch: of this step.
            modality: of the encoder.
            views: names of views, e.g. ["crop0", "crop1"]. A view that is named twice is encoded twice: dropout differs.
            network: the encoder itself, or its teacher (no gradient, and no dropout).
            keep: for each view [B, T_keep], positions of the tokens that are encoded; None: all.
            replace: (for each view a mask [B, T] bool, value [D] in place of masked tokens); None: nothing is replaced.
            hidden: K, number of last blocks whose outputs are read.
            mlps: read the outputs of their mlps, before they are added, in place of those of the blocks.
            pooled_only: the caller reads `pooled` alone.
            together: False: one call for each view, so that batch norm sees the views apart (Barlow Twins, VICReg).

        Raises:
            ValueError: no such view, encoder or teacher; or samples without a modality that is not optional.
        """
        masks, value = replace if replace is not None else (None, None)
        requests = [
            Request(
                None if keep is None else keep[i],
                None if masks is None else masks[i],
                value,
                hidden,
                mlps and hidden > 0,
                pooled_only,
            )
            for i in range(len(views))
        ]
        return self._forward.features(batch, modality, views, network, requests, together)

    def presence(self, batch: Batch, modality: str) -> dict[str, Tensor]:
        """The latent "present" [B] bool, for `Present`, of a modality that samples may lack; nothing for others."""
        if modality not in self.optional:
            return {}
        everyone = torch.ones(len(batch), dtype=torch.bool, device=batch.index.device)
        return {"present": batch.present.get(modality, everyone)}

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of random numbers, a pure function of (seed, name, step): equal on all processes and after a resume."""
        return torch.Generator(device).manual_seed(fold(self.seed, "shared", name, self.step))

    def forget(self) -> None:
        """Drop the features that `features` remembers, where one context serves many batches."""
        self.__dict__.pop("_forward", None)

    @cached_property
    def _forward(self) -> SharedForward:
        networks: dict[Network, Mapping[str, nn.Module]] = {"student": self.encoders, "teacher": self.teachers}
        return SharedForward(networks, self.whole, self.layers, self.optional)
