"""Joint blocks and decoder on the visible tokens of several modalities: each is predicted from what is seen of all (CAV-MAE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmssl.core.positions import sincos_positions
from mmssl.heads.decoders import DecoderBlock, MaskedTokenDecoderConfig


class JointDecoder(nn.Module):
    """Predicts all tokens of the grids of M modalities from the encoded visible ones of all.

    Gong et al. 2023 (arXiv:2210.07839), section 2.2: visible tokens of all modalities, each with a learned vector of its modality,
    go through joint blocks of the encoders' width; then, with mask tokens at all other places, through one decoder.

    Args:
        width: D of the encoders.
        grids: modality -> shape of its token grid; T_m is its product.
        values: modality -> P_m, numbers to predict for each token.
        joint_depth: number of joint blocks.
        joint_heads: their attention heads, a divisor of D.
        decoder: size of the decoder.
    """

    def __init__(
        self,
        width: int,
        grids: Mapping[str, Sequence[int]],
        values: Mapping[str, int],
        joint_depth: int,
        joint_heads: int,
        decoder: MaskedTokenDecoderConfig,
    ) -> None:
        super().__init__()
        self.values = dict(values)
        for name, grid in grids.items():
            self.register_buffer(f"positions_{name}", sincos_positions(grid, decoder.width))
        self.joint = nn.Sequential(*[DecoderBlock(width, joint_heads) for _ in range(joint_depth)], nn.LayerNorm(width))
        self.embed = nn.Linear(width, decoder.width)
        self.blocks = nn.Sequential(*[DecoderBlock(decoder.width, decoder.heads) for _ in range(decoder.depth)])
        self.norm = nn.LayerNorm(decoder.width)
        self.predict = nn.ModuleDict({name: nn.Linear(decoder.width, size) for name, size in values.items()})
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.mask_token = nn.Parameter(torch.empty(decoder.width).normal_(std=0.02))
        self.kinds = nn.ParameterDict({name: torch.empty(width).normal_(std=0.02) for name in values})
        self.decoder_kinds = nn.ParameterDict({name: torch.empty(decoder.width).normal_(std=0.02) for name in values})

    def tokens(self, name: str) -> int:
        """T of a modality."""
        return len(self._positions(name))

    def forward(self, tokens: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict all tokens, visible ones included.

        Args:
            tokens: modality -> [B, T_keep, D] encoded tokens.
            keep: modality -> [B, T_keep] int64, their places in the grid.

        Returns:
            Modality -> [B, T_m, P_m].
        """
        together = self.joint(torch.cat([x + self.kinds[name] for name, x in tokens.items()], 1))
        seen = self.embed(together).split([x.shape[1] for x in tokens.values()], 1)
        full = [self._placed(name, x, keep[name]) for name, x in zip(tokens, seen, strict=True)]
        found = self.norm(self.blocks(torch.cat(full, 1))).split([x.shape[1] for x in full], 1)
        return {name: self.predict[name](x) for name, x in zip(tokens, found, strict=True)}

    def _placed(self, name: str, seen: Tensor, keep: Tensor) -> Tensor:
        """Tokens at their places and mask tokens elsewhere, [B, T, width]."""
        places = keep[..., None].expand(-1, -1, seen.shape[-1])
        masked = self.mask_token.to(seen.dtype).expand(len(seen), self.tokens(name), -1)
        kind: Tensor = self.decoder_kinds[name]
        return masked.scatter(1, places, seen) + self._positions(name) + kind

    def _positions(self, name: str) -> Tensor:
        return self.get_buffer(f"positions_{name}")
