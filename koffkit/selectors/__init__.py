"""One-shot selectors: estimates, from text and without training, of how much the unpruned model needs each
unit. One file each, registered under the entry points `koffkit.selectors`, here or in another package.

Stage `select_masks` prunes by their scores; `mask.init` starts learned gates from their saliencies.
"""

from __future__ import annotations

from .base import Calibration, Selector

__all__ = ["Calibration", "Selector"]
