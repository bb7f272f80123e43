"""What pages show of a sample: a text, a picture, or a sound to play, as data URIs of bounded length."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmssl.data.media.lossy import coding_rate, encode_lossy
from mmssl.data.modalities.resampling import resample, resampling_ratio
from mmssl.data.modality import Modality
from mmssl.data.samples import BadSample, Samples, read_sample
from mmssl.evaluation.texts import shorten_text
from mmssl.reporting.figures import lines_uri, picture_uri
from mmssl.reporting.score_table import printable

LARGEST = 2_700_000
"""Length of a data URI in characters up to which a file of 2 MB stays as it is."""
SOUNDS = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "ogg": "audio/ogg", "m4a": "audio/mp4"}
BIT_RATE, BITS_A_SAMPLE, HEADERS = 48_000, 3, 2_000
"""Of sounds that are encoded anew: bits a second of each channel, fewer at low rates, and bytes of headers and the last frame."""
SIDES = (240, 160, 112, 64, 48)
"""Largest sides of pictures in pixels, the first one that is short enough."""
LANES = 16
"""Rows of numbers up to which a matrix is drawn as curves; with more it is a picture."""


@dataclass(frozen=True)
class ShownSample:
    """What a page shows of a sample.

    Attributes:
        key: of the sample, or what a query was.
        text: caption, where the item is one.
        picture, sound: data URIs, where the item has one. Of clips the picture has four frames, row by row.
        note: which part of the item it is, where it is not all.
    """

    key: str
    text: str = ""
    picture: str = ""
    sound: str = ""
    note: str = ""


def shown_sample(
    modality: Modality,
    key: str,
    value: Any,
    data: bytes = b"",
    extension: str = "",
    item: int = 0,
    largest: int = LARGEST,
) -> ShownSample:
    """A decoded value as a page shows it: by its view "eval", sounds as they are stored.

    Args:
        modality: that decoded it.
        key: of the sample, or what the query was.
        value: the decoded value.
        data, extension: of the file, for sounds.
        item: which caption of the sample.
        largest: length of a data URI in characters: smaller pictures, and the middle of longer sounds.
    """
    key = printable(key)
    if modality.language:
        return ShownSample(key, text=shorten_text(printable(value[min(item, len(value) - 1)])))
    if modality.audible:
        return _sound(modality, key, value, data, extension, largest)
    if modality.label or modality.token_ids is not None:
        return ShownSample(key)
    return ShownSample(key, picture=_picture(modality.view("eval")(value, {}), largest))


def show_sample(index: Samples, modality: Modality, number: int, item: int = 0, largest: int = LARGEST) -> ShownSample:
    """A sample of a data set; only its key if it cannot be read any more."""
    try:
        encoded = read_sample(index, number, {modality.name: modality})
        extension = encoded.members[modality.name]
        value = encoded.decode().values[modality.name]
    except BadSample:
        return ShownSample(printable(index.key(number)))
    reader = encoded.modalities[modality.name]
    return shown_sample(reader, encoded.raw.key, value, encoded.raw.fields[extension], extension, item, largest)


def _sound(modality: Modality, key: str, value: Any, data: bytes, extension: str, largest: int) -> ShownSample:
    """The file itself if browsers play it and it is short enough, else as much of its middle as mp3."""
    if extension in SOUNDS and _encoded_length(len(data)) <= largest:
        return ShownSample(key, sound=_uri(SOUNDS[extension], data))
    wave = np.atleast_2d(np.asarray(value, dtype=np.float32))[:2]
    if modality.values_per_second is None or not wave.size:
        return ShownSample(key)
    rate = round(modality.values_per_second)
    bits = min(BIT_RATE, BITS_A_SAMPLE * rate) * len(wave)
    room = max(0, largest * 3 // 4 - HEADERS) * 8 / bits
    count = min(wave.shape[1], int(room * rate))
    start = (wave.shape[1] - count) // 2
    coding = coding_rate("mp3", rate, bits)
    middle = np.clip(resample(wave[:, start : start + count], resampling_ratio(coding, rate)), -1, 1)
    uri = _uri("audio/mpeg", encode_lossy(middle, "mp3", coding, bits)) if middle.size else ""
    if not uri or len(uri) > largest:
        return ShownSample(key)
    part = f"{count / rate:.1f} s of {wave.shape[1] / rate:.1f} s" if count < wave.shape[1] else ""
    return ShownSample(key, sound=uri, note=part)


def _picture(x: Tensor, largest: int) -> str:
    """A view as a data URI: pictures [..., C, H, W], curves [C, T]; empty for anything else."""
    if x.dim() <= 2 and x.numel() > 1:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= LANES:
            return lines_uri(rows)
        x = rows[None]
    if x.dim() < 3 or not x.numel():
        return ""
    frames = [_pixels(frame) for frame in x.reshape(-1, *x.shape[-3:])]
    if len(frames) > 1:
        a, b, c, d = (F.pad(frames[(2 * i + 1) * len(frames) // 8], (1, 1, 1, 1), value=255) for i in range(4))
        frames = [torch.cat([torch.cat([a, b], 2), torch.cat([c, d], 2)], 1)]
    uris = (picture_uri(frames[0], side) for side in SIDES)
    return next((uri for uri in uris if len(uri) <= largest), "")


def _pixels(x: Tensor) -> Tensor:
    """Colours uint8 [3, H, W] as they are; other channels [C, H, W] as their mean in grey, floats from lowest to highest."""
    if x.dtype == torch.uint8 and len(x) == 3:
        return x
    grey = torch.nan_to_num(x.float()).mean(0)
    if x.dtype != torch.uint8:
        grey = 255 * (grey - grey.min()) / (grey.max() - grey.min()).clamp_min(1e-30)
    return grey.round().byte().expand(3, -1, -1)


def _encoded_length(size: int) -> int:
    return 4 * -(-size // 3) + 64


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
