"""The schedule of training: pure functions of (seed, step), so that a resumed run neither repeats nor skips
anything."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..recipe.learning import Anneal
from ..recipe.schema import Recipe
from ..recipe.training import Training

GATE_RATE, GATE_WAY, SLOWEST = 1e-2, 16.0, 0.1
"""Of the gates: the lowest rate, the way that they can go at the default rate in all steps, and the share of
the rate that is left at the end."""
LORA_RATE, LORA_LEAST, LORA_MOST = 1.2e-2, 1e-4, 1e-3
"""Of LoRA: the default rate if a memory gets one step, which falls with the root of the steps that it gets,
and the limits (benchmarks/results, "Rates of a short training")."""


@dataclass(frozen=True)
class Schedule:
    """The schedule of one stage.

    Args:
        domains: the domains, in the order of the recipe.
        options: the stage's options.
        retention: whether there are retention steps.
    """

    recipe: Recipe
    domains: list[str]
    options: Training
    retention: bool

    def step(self, step: int) -> tuple[str, bool]:
        """The domain of a step, and whether it is a retention step (then: whose memory is attached)."""
        every = self.recipe.distill.retention_every
        if self.retention and step % every == every - 1:
            return self.domains[
                int(np.random.default_rng((self.recipe.seed, 1, step)).integers(len(self.domains)))
            ], True
        if self._weights is not None:
            return self.domains[
                int(
                    np.random.default_rng((self.recipe.seed, 3, step)).choice(
                        len(self.domains), p=self._weights
                    )
                )
            ], False
        cycle, place = divmod(step, len(self.domains))  # shuffled round robin
        return self.domains[
            int(np.random.default_rng((self.recipe.seed, 2, cycle)).permutation(len(self.domains))[place])
        ], False

    def visit(self, step: int, retention: bool) -> int:
        """The number of the batch that a step takes from its stream."""
        if retention:
            return step // self.recipe.distill.retention_every
        return step if self._weights is not None else step // len(self.domains)

    @property
    def _weights(self) -> list[float] | None:
        given = self.recipe.distill.domain_weights
        weights = [given.get(domain, 1.0) for domain in self.domains]
        return [weight / sum(weights) for weight in weights] if len(set(weights)) > 1 else None

    def rate_scale(self, step: int) -> float:
        """Factor of the memory's learning rates: warm-up, then decay."""
        warmup, total = self.options.warmup_steps, self.options.max_steps
        if step < warmup:
            return (step + 1) / warmup
        passed = (step - warmup) / max(1, total - warmup)
        decays = {"constant": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}
        return decays[self.options.decay]

    def memory_rate(self, name: str) -> float:
        """The learning rate of a part of the memories before warm-up and decay.

        Args:
            name: `lora`, `kv`, `neurons` or `backbone`.
        """
        given: float | None = getattr(self.options.lr, name)
        if given is not None:
            return given
        steps = max(1.0, self.options.max_steps / len(self.domains))
        return min(LORA_MOST, max(LORA_LEAST, LORA_RATE / math.sqrt(steps)))

    def gate_rate(self, step: int) -> float:
        """The learning rate of the gates.

        Adam moves a `log_alpha` by at most about its rate a step, and a gate has a way of five or more from a
        mean of .95 to shut: where the rate does not depend on the number of steps, the gates of a short run
        cannot arrive. They arrive at full speed, so the rate then falls.
        """
        given, total = self.options.lr.gates, self.options.max_steps
        if given is not None:
            return given
        turn = self.recipe.mask.reach_by * total
        left = 1.0 if step < turn else (total - step) / (total - turn)
        return max(GATE_RATE, GATE_WAY / total) * max(SLOWEST, left)

    def temperature(self, step: int) -> float:
        """The temperature of the Hard Concrete gates."""
        given = self.recipe.mask.temperature
        if not isinstance(given, Anneal):
            return given
        return float(given.start * (given.end / given.start) ** (step / max(1, self.options.max_steps - 1)))
