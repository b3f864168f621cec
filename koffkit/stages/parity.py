"""The exporter's gate before anything is learned: would this base, sliced by the first masks, still be what the student is trained as?"""

from __future__ import annotations

from pathlib import Path

from ..arch import Shape, architecture_of
from ..container import complete_config, sliced_config
from ..runtime.parity import require_same
from ..runtime.probe import Probe, probe_tokens
from ..sliced_reader import SlicedReader
from ..slicing import backbone_slices, zero_rows
from ..structures import Masks
from .base import Context
