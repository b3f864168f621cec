"""Hard Concrete gates (Louizos et al. 2018, arXiv 1712.01312, section 3): one `log_alpha` per removable unit.

Noise is a pure function of `(seed, step)`, drawn on the CPU: a resumed run, or one on another device, sees
the same noise.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


# The integral over [0, 1] by Gauss-Legendre in panels: errors below 1e-9 up to temperature 100, whose steep
# P(gate > t) a single panel would miss.
_PANELS = 256
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)
_LEVELS = ((np.arange(_PANELS)[:, None] + (_NODES + 1) / 2) / _PANELS).ravel()
_STRETCHED = (_LEVELS - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
_LOGITS = np.log(_STRETCHED / (1 - _STRETCHED))
_SHARES = np.tile(_WEIGHTS / 2 / _PANELS, _PANELS)


def mean_gate(log_alpha: float, temperature: float) -> float:
    """E[gate]: the mean of the stretched and clamped variable, the integral of P(gate > t) over [0, 1]."""
    exceeds = 0.5 * (1 + np.tanh((log_alpha - temperature * _LOGITS) / 2))
    return float(_SHARES @ exceeds)


def initial_log_alpha(mean: float, temperature: float) -> float:
    """The `log_alpha` at which E[gate] has the given value.

    P(gate != 0), by which gates are often started, hides their value: at temperature 2 a gate that is open
    with probability .95 lets .27 through on average.

    Args:
        mean: in (0, 1).
        temperature: above 0.
    """
    high = 40 + 3 * temperature  # where E[gate] is 1 to the last bit
    low = -high
    for _ in range(100):  # E[gate] rises with log_alpha; more halvings than a double has bits
        middle = (low + high) / 2
        low, high = (middle, high) if mean_gate(middle, temperature) < mean else (low, middle)
    return (low + high) / 2


def sample(log_alpha: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """Draw relaxed gates in [0, 1], same shape as `log_alpha`; differentiable in it.

    Args:
        log_alpha: any shape.
        temperature: above 0; lower values push gates towards 0 and 1.
        generator: source of the noise, on the CPU.
    """
    noise = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(log_alpha.device)
    relaxed = torch.sigmoid((noise.logit() + log_alpha) / temperature)
    return (relaxed * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


def active_probability(log_alpha: Tensor, temperature: float) -> Tensor:
    """P(gate != 0), elementwise (equation 12).

    Args:
        log_alpha: one entry a gate, of any shape.
        temperature: of the Hard Concrete distribution, above 0.
    """
    return torch.sigmoid(log_alpha - temperature * math.log(-STRETCH_LOW / STRETCH_HIGH))


def straight_through(hard: Tensor, scores: Tensor) -> Tensor:
    """Gates with the values of `hard`, whose derivative by a gate is that by its score, open or shut (Bengio
    et al. 2013, arXiv 1308.3432).

    Args:
        hard: which gates are open, 0 or 1, of any shape.
        scores: what learns, of the same shape.
    """
    return hard + (scores - scores.detach())
