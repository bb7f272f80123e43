"""All corruptions of pictures."""

from __future__ import annotations

from collections.abc import Mapping

from mmssl.data.corruption import Corruption
from mmssl.data.modalities.corruptions.common import COMMON, EXTRA
from mmssl.data.modalities.corruptions.unnatural import UNNATURAL

PICTURES: Mapping[str, Corruption] = {**COMMON, **EXTRA, **UNNATURAL}
