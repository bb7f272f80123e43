"""Processors of transformers that read pictures, sounds and texts as a trained model does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor
from transformers import AutoTokenizer, ClapFeatureExtractor, CLIPImageProcessorPil, CLIPTokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from mmssl.data.modalities.clip_vocabulary import clean_text
from mmssl.data.modalities.tokenizers import ClipTokenizer, HfTokenizer, Tokenizer
from mmssl.data.modalities.views.image import EvalView
from mmssl.encoders.adapters.transformers_audio import HfClapAudioConfig
from mmssl.encoders.pixels import Pixels
from mmssl.interop.described import BICUBIC, BILINEAR
from mmssl.interop.towers import Towers

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_WORDS = 49408


def tokenizer_of(towers: Towers) -> Tokenizer:
    """The tokenizer of the texts.

    Raises:
        ValueError: the modality is none of texts.
    """
    tokenizer = getattr(towers.modalities[towers.text], "tokenizer", None)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"modalities.{towers.text}: wanted texts, and this model reads something else")
    return tokenizer


def written_tokenizer(tokenizer: Tokenizer, folder: Path, *, masked: bool) -> Any:
    """transformers' tokenizer with the ids of ours.

    Args:
        tokenizer: ours.
        folder: gets the vocabulary of CLIP's in the files that older versions of transformers read.
        masked: whether the text model masks padding in attention; else the tokenizer gives no attention mask, which a caller
            would pass on (SigLIP's attention reads padding).

    Raises:
        ValueError: a tokenizer of another kind.
    """
    if isinstance(tokenizer, ClipTokenizer):
        made = _clip_tokenizer(tokenizer.context_length, folder)
    elif isinstance(tokenizer, HfTokenizer):
        # Kept in its files only if given here; classes have default sides.
        kept: dict[str, Any] = {"padding_side": "right", "truncation_side": "right"}
        kept |= {"model_max_length": tokenizer.context_length}
        kept |= {} if masked else {"model_input_names": ["input_ids"]}
        made = AutoTokenizer.from_pretrained(tokenizer.path, local_files_only=True, trust_remote_code=False, **kept)
    else:
        raise ValueError(f"got a {type(tokenizer).__name__}, wanted tokenizer kind clip or hf, which transformers has")
    return made


def cleaned(tokenizer: Tokenizer, text: str) -> str:
    """A text as ours cleans it before it reads words: transformers' tokenizers repair no HTML entities and encodings."""
    if isinstance(tokenizer, HfTokenizer):
        return text if tokenizer.clean is None else clean_text(text, tokenizer.clean)
    return clean_text(text, "lower")


def written_pictures(view: EvalView, pixels: Pixels, size: int) -> Any:
    """An image processor that makes pictures as the view "eval" and the encoder's normalisation do.

    Pillow resizes, as in training: other backends of transformers differ by up to 1/255 a pixel.
    """
    square = {"height": size, "width": size}
    crops = view.fit == "crop"
    return CLIPImageProcessorPil(
        size={"shortest_edge": size} if crops else square,
        do_center_crop=crops,
        resample=BICUBIC if view.interpolation == "bicubic" else BILINEAR,
        crop_size=square,
        image_mean=_decimal(pixels.mean),
        image_std=_decimal(pixels.std),
    )


def written_patches(pixels: Pixels, size: int, patch: int) -> Any:
    """An image processor of rows of patches, with as many as a square of `size` has: squares of that size are not resized."""
    return Siglip2ImageProcessorPil(
        patch_size=patch,
        max_num_patches=(size // patch) ** 2,
        image_mean=_decimal(pixels.mean),
        image_std=_decimal(pixels.std),
    )


def _decimal(x: Tensor) -> list[float]:
    """float32 numbers with the digits that they have."""
    return [float(f"{number:.8g}") for number in x.flatten().tolist()]


def written_sounds(config: HfClapAudioConfig, fused: bool, folder: Path) -> Any:
    """A feature extractor with the spectrograms of a CLAP tower; it is saved into `folder`, and compared as read back.

    Raises:
        ValueError: transformers' extractor lacks a setting of the front-end; names it.
    """
    own = config.spectrogram(fused=fused)
    mel = own.settings
    extractor = ClapFeatureExtractor(
        feature_size=mel.mels,
        sampling_rate=mel.rate,
        hop_length=mel.hop,
        max_length_s=int(own.seconds),
        fft_window_size=mel.window,
        frequency_min=mel.low,
        frequency_max=mel.top,
        truncation="fusion" if fused else "rand_trunc",
        padding="repeatpad",
    )
    extractor.save_pretrained(folder)
    back = HfClapAudioConfig(path=folder).spectrogram(fused=fused)
    wanted, found = (
        {**one.settings.model_dump(), "high": one.settings.top, "seconds": one.seconds} for one in (own, back)
    )
    wrong = [key for key, value in wanted.items() if key != "spec_augment" and found[key] != value]
    if wrong:
        raise ValueError(
            f"front_end: ClapFeatureExtractor has no {wrong[0]}: {wanted[wrong[0]]!r}, but {found[wrong[0]]!r}; export --to onnx"
        )
    return extractor


def _clip_tokenizer(length: int, folder: Path) -> Any:
    """CLIP's words and merges, from the file that open_clip ships, with the special tokens as transformers names them."""
    path = Path(open_clip.tokenizer.default_bpe())
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    ids = {word: number for word, number in tokenizer.encoder.items() if number < CLIP_WORDS - 2}
    vocabulary = ids | {START: CLIP_WORDS - 2, END: CLIP_WORDS - 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(lines) + "\n")
    merges: Any = [tuple(merge.split()) for merge in lines]
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges,
        unk_token=END, bos_token=START, eos_token=END, pad_token=END, model_max_length=length,
    )  # fmt: skip
