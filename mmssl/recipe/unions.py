"""The registry: every config that a recipe can select by `kind`, one line each. Installed packages add theirs.

See `mmssl.core.plugins` for the entry points.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

from pydantic import Field

from mmssl.core.config import Config
from mmssl.core.encoder import EncoderConfig
from mmssl.core.plugins import Plugin, configs, discover
from mmssl.data.modalities.array import ArrayConfig
from mmssl.data.modalities.audio import AudioConfig
from mmssl.data.modalities.image import ImageConfig
from mmssl.data.modalities.label import LabelConfig
from mmssl.data.modalities.multi_label import MultiLabelConfig
from mmssl.data.modalities.series import SeriesConfig
from mmssl.data.modalities.text import TextConfig
from mmssl.data.modalities.video import VideoConfig
from mmssl.data.modality import ModalityConfig
from mmssl.encoders.adapters.open_clip import OpenClipConfig
from mmssl.encoders.adapters.timm import TimmConfig
from mmssl.encoders.adapters.transformers import HfTextConfig, HfVisionConfig
from mmssl.encoders.adapters.transformers_audio import HfAstConfig, HfClapAudioConfig
from mmssl.encoders.audio_resnet import AudioResNetConfig
from mmssl.encoders.audio_transformer import AudioTransformerConfig
from mmssl.encoders.frame_video import FrameVideoConfig
from mmssl.encoders.resnet import ResNetConfig
from mmssl.encoders.series_conv import SeriesConvConfig
from mmssl.encoders.series_transformer import SeriesTransformerConfig
from mmssl.encoders.space_time import SpaceTimeConfig
from mmssl.encoders.text_transformer import TextTransformerConfig
from mmssl.encoders.vit import VisionTransformerConfig
from mmssl.encoders.waveform_transformer import WaveformTransformerConfig
from mmssl.evaluation.calibration import CalibrationConfig
from mmssl.evaluation.class_retrieval import ClassRetrievalConfig
from mmssl.evaluation.common import EvaluatorConfig
from mmssl.evaluation.labelled.attentive_probe import AttentiveProbeConfig
from mmssl.evaluation.labelled.few_shot import FewShotConfig
from mmssl.evaluation.labelled.fine_tuning import FineTuningConfig
from mmssl.evaluation.labelled.knn import KnnConfig
from mmssl.evaluation.labelled.linear_probe import LinearProbeConfig
from mmssl.evaluation.labelled.multi_label import MultiLabelZeroShotConfig
from mmssl.evaluation.labelled.zero_shot import ZeroShotConfig
from mmssl.evaluation.mteb_tasks import MtebConfig
from mmssl.evaluation.relations.caption_choice import CaptionChoiceConfig
from mmssl.evaluation.relations.card import RelationsConfig
from mmssl.evaluation.relations.compositionality import CompositionalityConfig
from mmssl.evaluation.relations.modality_confusion import ModalityConfusionConfig
from mmssl.evaluation.relations.modality_gap import ModalityGapConfig
from mmssl.evaluation.relations.offset import OffsetConfig
from mmssl.evaluation.relations.sides import SidesConfig
from mmssl.evaluation.relations.target_modality import TargetModalityConfig
from mmssl.evaluation.relations.word_order import WordOrderConfig
from mmssl.evaluation.representation import RepresentationConfig
from mmssl.evaluation.retrieval import RetrievalConfig
from mmssl.objectives.barlow_twins import BarlowTwinsConfig
from mmssl.objectives.byol import ByolConfig
from mmssl.objectives.clip import ClipConfig
from mmssl.objectives.colorization import ColorizationConfig
from mmssl.objectives.common import ObjectiveConfig
from mmssl.objectives.cpc import CpcConfig
from mmssl.objectives.deepcluster_v2 import DeepClusterV2Config
from mmssl.objectives.denoise import DenoiseConfig
from mmssl.objectives.dino import DinoConfig
from mmssl.objectives.jepa import JepaConfig
from mmssl.objectives.joint_mae import JointMaeConfig
from mmssl.objectives.latent_prediction import LatentPredictionConfig
from mmssl.objectives.lejepa import LeJepaConfig
from mmssl.objectives.mae import MaeConfig
from mmssl.objectives.masked_prediction import MaskedPredictionConfig
from mmssl.objectives.moco_v2 import MocoV2Config
from mmssl.objectives.moco_v3 import MocoV3Config
from mmssl.objectives.nnclr import NnClrConfig
from mmssl.objectives.pirl import PirlConfig
from mmssl.objectives.pretext import PretextConfig
from mmssl.objectives.self_labels import SelfLabelsConfig
from mmssl.objectives.simclr import SimClrConfig
from mmssl.objectives.simcse import SimCseConfig
from mmssl.objectives.simsiam import SimSiamConfig
from mmssl.objectives.swav import SwavConfig
from mmssl.objectives.ts2vec import Ts2VecConfig
from mmssl.objectives.vicreg import VicRegConfig
from mmssl.objectives.wav2vec2 import Wav2Vec2Config
from mmssl.objectives.weighted import WeightedConfig

KIND = Field(discriminator="kind")

ModalityUnion = Annotated[
    ImageConfig
    | AudioConfig
    | VideoConfig
    | TextConfig
    | LabelConfig
    | MultiLabelConfig
    | ArrayConfig
    | SeriesConfig,
    KIND,
]  # fmt: skip

EncoderUnion = Annotated[
    VisionTransformerConfig
    | ResNetConfig
    | AudioTransformerConfig
    | AudioResNetConfig
    | WaveformTransformerConfig
    | FrameVideoConfig
    | SpaceTimeConfig
    | TextTransformerConfig
    | SeriesTransformerConfig
    | SeriesConvConfig
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
    | BarlowTwinsConfig
    | VicRegConfig
    | SimSiamConfig
    | LeJepaConfig
    | ByolConfig
    | MocoV2Config
    | MocoV3Config
    | NnClrConfig
    | DinoConfig
    | SwavConfig
    | LatentPredictionConfig
    | JepaConfig
    | MaskedPredictionConfig
    | PretextConfig
    | DenoiseConfig
    | JointMaeConfig
    | PirlConfig
    | SelfLabelsConfig
    | ColorizationConfig
    | CpcConfig
    | Wav2Vec2Config
    | SimCseConfig
    | DeepClusterV2Config
    | Ts2VecConfig
    | MaeConfig,
    KIND,
]  # fmt: skip

EvaluatorUnion = Annotated[
    ZeroShotConfig
    | MultiLabelZeroShotConfig
    | RetrievalConfig
    | ClassRetrievalConfig
    | OffsetConfig
    | SidesConfig
    | CompositionalityConfig
    | CaptionChoiceConfig
    | WordOrderConfig
    | ModalityConfusionConfig
    | TargetModalityConfig
    | RelationsConfig
    | LinearProbeConfig
    | AttentiveProbeConfig
    | FineTuningConfig
    | KnnConfig
    | FewShotConfig
    | RepresentationConfig
    | ModalityGapConfig
    | CalibrationConfig
    | MtebConfig,
    KIND,
]  # fmt: skip

ObjectiveUnion = Annotated[SingleObjectiveUnion | WeightedConfig[SingleObjectiveUnion], KIND]


def members(union: Any) -> tuple[Any, ...]:
    """The configs of one of the unions above."""
    found: tuple[Any, ...] = get_args(get_args(union)[0])
    return found


BASES: dict[str, type[Config]] = {
    "mmssl.modalities": ModalityConfig,
    "mmssl.encoders": EncoderConfig,
    "mmssl.objectives": ObjectiveConfig,
    "mmssl.evaluators": EvaluatorConfig,
}
"""Group of entry points -> base class of its configs."""
SHIPPED: dict[str, tuple[type[Config], ...]] = {
    "mmssl.modalities": members(ModalityUnion),
    "mmssl.encoders": members(EncoderUnion),
    "mmssl.objectives": (*members(SingleObjectiveUnion), WeightedConfig),
    "mmssl.evaluators": members(EvaluatorUnion),
}
"""Group of entry points -> the configs of this package."""


def plugins() -> Iterator[Plugin]:
    """All entry points of other packages, also those that cannot be used."""
    for group, base in BASES.items():
        yield from discover(group, base, SHIPPED[group])


def _union(parts: Iterable[Any]) -> Any:
    return Annotated[Union[tuple(parts)], KIND]  # noqa: UP007 - of as many as there are


def _with_plugins(union: Any, group: str) -> Any:
    return _union((*members(union), *configs(group, BASES[group], SHIPPED[group])))


if not TYPE_CHECKING:
    ModalityUnion = _with_plugins(ModalityUnion, "mmssl.modalities")
    EncoderUnion = _with_plugins(EncoderUnion, "mmssl.encoders")
    SingleObjectiveUnion = _with_plugins(SingleObjectiveUnion, "mmssl.objectives")
    ObjectiveUnion = _union((*members(SingleObjectiveUnion), WeightedConfig[SingleObjectiveUnion]))
    EvaluatorUnion = _with_plugins(EvaluatorUnion, "mmssl.evaluators")
