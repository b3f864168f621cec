"""Steering the expected active fraction to its target (method, section 3): a hinge with an adaptive weight,
the same with a moving target, and a Lagrangian.

A controller sees the expected active fractions and their targets as vectors: one entry per constraint (a
structure in a layer for `uniform`, the whole model for `ragged`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

GROWTH = 1000.0
LEAST, MOST = 1e-3, 1e4


class Controller(Protocol):
    """`penalty` before the gates move, `update` after; `state` and `load` for checkpoints (JSON); `strength`
    is lambda, for the log."""

    @property
    def strength(self) -> float: ...

    def penalty(self, active: Tensor, target: Tensor) -> Tensor: ...

    def update(self, active: Tensor, target: Tensor) -> None: ...

    def state(self) -> dict[str, Any]: ...

    def load(self, state: dict[str, Any]) -> None: ...


@dataclass
class HingeController:
    """`lambda * mean_over_constraints [active - target]_+`, lambda growing while the target is not met.

    How the paper's "auto-scaling" scales lambda is not written there; this is ours.

    Args:
        weight: lambda now.
        rise_steps: steps in which lambda may grow a thousandfold. It grows at that rate while some constraint
            is above its target by more than `tolerance`, and shrinks at the same rate while all are below: a
            lambda that stays at its peak would push the gates far past the target at the next violation.
        scaling: false: lambda stays as it is.
        two_sided: the distance to the target is penalised instead, from both sides.
    """

    weight: float
    rise_steps: int
    tolerance: float = 0.002
    scaling: bool = True
    two_sided: bool = False

    def penalty(self, active: Tensor, target: Tensor) -> Tensor:
        distance = active - target
        return self.weight * (distance.abs() if self.two_sided else torch.relu(distance)).mean()

    def update(self, active: Tensor, target: Tensor) -> None:
        if not self.scaling:
            return
        if bool(((active - target) > self.tolerance).any()):
            self.weight *= self._rate
        elif bool((active < target).all()):
            self.weight = max(self.weight / self._rate, LEAST)

    def state(self) -> dict[str, Any]:
        return {"lambda": self.weight}

    def load(self, state: dict[str, Any]) -> None:
        self.weight = float(state["lambda"])

    @property
    def strength(self) -> float:
        return self.weight

    @property
    def _rate(self) -> float:
        return math.exp(math.log(GROWTH) / max(1, self.rise_steps))


@dataclass
class PacedController:
    """The hinge with a lambda for every constraint, which grows while the active fraction is behind its pace
    and shrinks while it is ahead (ours).

    The pace is a straight line from the first active fraction to the target in `rise_steps` steps. A lambda
    that only asks whether the target is met grows for as long as the gates are on their way, a thousandfold
    and more, and pushes them far past it; a hinge does not bring them back. So the distance to the target is
    penalised from both sides from `rise_steps` on, and its lambda grows with a miss in either direction.

    Args:
        weight: lambda at the start, and at least; at most it becomes ten thousand.
        rise_steps: steps in which the target is to be reached, and lambda may grow a millionfold.
    """

    weight: float
    rise_steps: int
    tolerance: float = 0.002
    step: int = 0
    weights: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    @property
    def strength(self) -> float:
        return sum(self.weights) / len(self.weights) if self.weights else self.weight

    @property
    def _arrived(self) -> bool:
        return self.step >= self.rise_steps

    def penalty(self, active: Tensor, target: Tensor) -> Tensor:
        weights = active.new_tensor(self.weights) if self.weights else self.weight
        distance = active - target
        return (weights * (distance.abs() if self._arrived else torch.relu(distance))).mean()

    def update(self, active: Tensor, target: Tensor) -> None:
        values, goals = active.tolist(), target.tolist()
        if not self.weights:
            self.weights, self.first = [self.weight] * len(values), values
        self.step += 1
        rate = GROWTH ** (2 / max(1, self.rise_steps))
        self.weights = [
            min(weight * rate, MOST) if self._behind(*place) else max(weight / rate, self.weight)
            for weight, *place in zip(self.weights, values, goals, self.first, strict=True)
        ]

    def _behind(self, value: float, goal: float, first: float) -> bool:
        if self._arrived:
            return abs(value - goal) > self.tolerance
        return value > goal + max(0.0, first - goal) * (1 - self.step / self.rise_steps)

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "lambdas": self.weights, "first": self.first}

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.weights, self.first = (
            int(state["step"]),
            list(state["lambdas"]),
            list(state["first"]),
        )


@dataclass
class ProgressiveController:
    """The hinge on a target that sinks linearly from fully active to the real one in `ramp_steps` steps.

    The paper found it worse than the plain hinge.
    """

    hinge: HingeController
    ramp_steps: int
    step: int = 0

    @property
    def strength(self) -> float:
        return self.hinge.weight

    def _target(self, target: Tensor) -> Tensor:
        return 1 - (1 - target) * min(1.0, (self.step + 1) / max(1, self.ramp_steps))

    def penalty(self, active: Tensor, target: Tensor) -> Tensor:
        return self.hinge.penalty(active, self._target(target))

    def update(self, active: Tensor, target: Tensor) -> None:
        self.hinge.update(active, self._target(target))
        self.step += 1

    def state(self) -> dict[str, Any]:
        return self.hinge.state() | {"step": self.step}

    def load(self, state: dict[str, Any]) -> None:
        self.hinge.load(state)
        self.step = int(state["step"])


@dataclass
class LagrangianController:
    """`mean(l1 * d + l2 * d^2)`, d = active - target, one pair of multipliers per constraint (as in Wang et
    al. 2020, arXiv 1910.04732).

    The multipliers ascend: l1 rises while too much is active and falls, below zero if need be, while too
    little is, so that the constraint holds from both sides; l2 only rises. The target sinks from fully active
    in `warmup_steps` steps: a Lagrangian that starts at the real one builds up multipliers that then push the
    gates far past it (the paper saw 98 % sparsity).

    Args:
        rate: step size of the ascent.
    """

    rate: float
    warmup_steps: int
    step: int = 0
    linear: list[float] = field(default_factory=list)
    quadratic: list[float] = field(default_factory=list)

    @property
    def strength(self) -> float:
        return sum(self.linear) / len(self.linear) if self.linear else 0.0

    def _distance(self, active: Tensor, target: Tensor) -> Tensor:
        return active - (1 - (1 - target) * min(1.0, (self.step + 1) / max(1, self.warmup_steps)))

    def penalty(self, active: Tensor, target: Tensor) -> Tensor:
        if not self.linear:
            return active.sum() * 0.0
        distance = self._distance(active, target)
        return (
            distance.new_tensor(self.linear) * distance + distance.new_tensor(self.quadratic) * distance**2
        ).mean()

    def update(self, active: Tensor, target: Tensor) -> None:
        distances = self._distance(active, target).tolist()
        linear, quadratic = self.linear or [0.0] * len(distances), self.quadratic or [0.0] * len(distances)
        self.linear = [value + self.rate * d for value, d in zip(linear, distances, strict=True)]
        self.quadratic = [value + self.rate * d * d for value, d in zip(quadratic, distances, strict=True)]
        self.step += 1

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "linear": self.linear, "quadratic": self.quadratic}

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.linear, self.quadratic = (
            int(state["step"]),
            list(state["linear"]),
            list(state["quadratic"]),
        )


def make_controller(
    kind: str, *, lambda_init: float, lambda_rate: float, rise_steps: int, scaling: str = "auto"
) -> Controller:
    """The controller of a recipe: `hinge`, `progressive`, `progressive_two_sided` or `lagrangian`.

    Args:
        rise_steps: steps in which lambda may grow a thousandfold, or the target reaches its end.
        scaling: of the hinge's lambda: `paced`, `auto` (it grows while a target is missed) or `fixed`.
    """
    if kind == "lagrangian":
        return LagrangianController(lambda_rate, rise_steps)
    if kind == "hinge" and scaling == "paced":
        return PacedController(lambda_init, rise_steps)
    hinge = HingeController(
        lambda_init, rise_steps, scaling=scaling != "fixed", two_sided=kind == "progressive_two_sided"
    )
    return hinge if kind == "hinge" else ProgressiveController(hinge, rise_steps)
