"""The check that encoders can do what an objective requires of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from mmssl.core.encoder import Encoder


def check_capabilities(
    objective: str, needs: Iterable[str], requires: Mapping[str, Set[str]], encoders: Mapping[str, Encoder]
) -> None:
    """Refuse an objective whose encoders are missing or cannot do what it needs.

    Args:
        objective: its name, for messages.
        needs: modalities of which it reads views.
        requires: modality -> capabilities of its encoder.
        encoders: modality -> encoder.

    Raises:
        ValueError: says which encoder lacks what.
    """
    for modality in needs:
        if modality not in encoders:
            raise ValueError(f"objective needs an encoder for {modality!r}, and the recipe has {sorted(encoders)}")
    for modality, wanted in requires.items():
        lacking = wanted - encoders[modality].capabilities
        if lacking:
            raise ValueError(
                f"{objective} needs an encoder for {modality!r} with {sorted(wanted)}, and "
                f"{type(encoders[modality]).__name__} has {sorted(encoders[modality].capabilities) or 'none of them'}: "
                f"it lacks {sorted(lacking)}; {_remedy(encoders[modality], lacking)}"
            )


def _remedy(encoder: Encoder, lacking: Set[str]) -> str:
    if encoder.token_ids is None and Encoder.EMBEDDED in lacking:
        return "use one of kind audio_transformer or series_transformer"
    if encoder.token_ids is None:
        return "encoders of kind vit, audio_transformer, series_transformer and space_time have them all"
    if Encoder.MASK_DROP in lacking:
        return "no encoder of texts drops tokens, so choose another objective"
    if lacking == {Encoder.BIDIRECTIONAL}:
        return "set causal: false, or choose a model without causal attention"
    causal = " with causal: false" if Encoder.BIDIRECTIONAL in lacking else ""
    return f"use one of kind text_transformer{causal}"
