"""Hard Concrete gates (Louizos et al. 2018, arXiv 1712.01312, section 3): one `log_alpha` per removable unit.

Noise is a pure function of `(seed, step)`, drawn on the CPU: a resumed run, or one on another device, sees
the same noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1


def initial_log_alpha(open_probability: float, temperature: float) -> float:
    """The `log_alpha` at which a gate is active (not exactly zero) with the given probability.

    Args:
        open_probability: in (0, 1).
        temperature: of the Hard Concrete distribution, above 0.
    """
    return math.log(open_probability / (1 - open_probability)) + temperature * math.log(
        -STRETCH_LOW / STRETCH_HIGH
    )


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
