"""Every variant that a recipe can name, one explicit line each: this file is the registry."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfTextConfig, HfVisionConfig
from mmssl.encoders.adapters.transformers_audio import HfAstConfig, HfClapAudioConfig
from mmssl.encoders.audio_resnet import AudioResNetConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.frame_video import FrameVideoConfig
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.evaluation.class_retrieval import ClassRetrievalConfig
from mmssl.evaluation.linear_probe import LinearProbeConfig
from mmssl.evaluation.offset import OffsetConfig
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.evaluation.sides import SidesConfig
from mmssl.evaluation.zero_shot import ZeroShotConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.objectives.mae import MaeConfig
from mmssl.objectives.simclr import SimClrConfig
from mmssl.objectives.weighted import WeightedConfig

KIND = Field(discriminator="kind")

ModalityUnion = Annotated[
    ImageConfig
    | AudioConfig
    | VideoConfig
    | TextConfig
    | LabelConfig,
    KIND,
]  # fmt: skip

EncoderUnion = Annotated[
    VisionTransformerConfig
    | ResNetConfig
    | AudioTransformerConfig
    | AudioResNetConfig
    | FrameVideoConfig
    | SpaceTimeConfig
    | TextTransformerConfig
    | TimmConfig
    | OpenClipConfig
    | HfTextConfig
    | HfVisionConfig
    | HfAstConfig
    | HfClapAudioConfig,
    KIND,
]  # fmt: skip

SingleObjectiveUnion = Annotated[
    ClipConfig
    | SimClrConfig
    | MaeConfig,
    KIND,
]  # fmt: skip

ObjectiveUnion = Annotated[
    ClipConfig
    | SimClrConfig
    | MaeConfig
    | WeightedConfig[SingleObjectiveUnion],
    KIND,
]  # fmt: skip

EvaluatorUnion = Annotated[
    ZeroShotConfig
    | RetrievalConfig
    | ClassRetrievalConfig
    | OffsetConfig
    | SidesConfig
    | LinearProbeConfig,
    KIND,
]  # fmt: skip
