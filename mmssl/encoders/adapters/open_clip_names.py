"""Names of our towers' tensors in open_clip (and OpenAI's CLIP). The only such table in the project."""

from __future__ import annotations

# (our name, open_clip's name). The tensors are equal bit for bit, only names differ. ModifiedResNet's names are the same.
_PAIRS = (
    ("blocks.", "transformer.resblocks."),
    (".norm1.", ".ln_1."),
    (".attention.qkv.", ".attn.in_proj_"),
    (".attention.out.", ".attn.out_proj."),
    (".scale1", ".ls_1.gamma"),
    (".norm2.", ".ln_2."),
    (".mlp.up.", ".mlp.c_fc."),
    (".mlp.down.", ".mlp.c_proj."),
    (".scale2", ".ls_2.gamma"),
    ("patch_embedding.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("norm_post.", "ln_post."),
    ("norm_final.", "ln_final."),
)


def to_open_clip_name(name: str) -> str:
    """Our tensor name to open_clip's: `blocks.0.attention.qkv.weight` -> `transformer.resblocks.0.attn.in_proj_weight`."""
    for ours, theirs in _PAIRS:
        name = name.replace(ours, theirs)
    return name


def from_open_clip_name(name: str) -> str:
    """open_clip's tensor name to ours: `transformer.resblocks.0.attn.in_proj_weight` -> `blocks.0.attention.qkv.weight`."""
    for ours, theirs in _PAIRS:
        name = name.replace(theirs, ours)
    return name
