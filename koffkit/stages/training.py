"""The distillation loop that `learn_masks` and `recover` share.

A domain step takes a batch of one domain with its memory attached; every `retention_every` steps a batch of retention text
with a random memory updates the mask only (method, section 4). What happens at a step is a pure function of (seed, step).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import IntegrityError, Interrupted
from ..method.controller import HingeController
from ..method.losses import TopK, distillation_loss
from ..recipe.schema import Coverage, Training
from .base import Context
from .checkpoint import Checkpoint, optimizer_moments, restore, restore_moments, save_checkpoint

LOW_COVERAGE = 0.9
BETAS = (0.9, 0.999)
# A long memory of squared gradients would hold the gates where the sparsity hinge, while it was on, has pushed them.
GATE_BETAS = (0.9, 0.98)


class DistillationLoop:
    """One training stage. `train_gates` tells `learn_masks` from `recover`."""

    def __init__(self, context: Context, name: str, options: Training, *, train_gates: bool) -> None:
        self.context, self.name, self.options, self.train_gates = context, name, options, train_gates
        self.recipe = context.loaded.recipe
        self.names = [stage.name for stage in self.recipe.stages]
        self.student = context.student
        self.groups = self._parameter_groups()
        self.tensor_names = {tensor: key for key, tensor in self.trainables().items()}
        self.optimizer = torch.optim.AdamW(list(self.groups.values()), lr=1.0, weight_decay=0.0) if self.groups else None
        mask = self.recipe.mask
        self.controller = HingeController(mask.lambda_init, int(mask.reach_by * options.max_steps))
        top = self.recipe.distill.top_k
        self.top = TopK(top.max, top.coverage) if isinstance(top, Coverage) else TopK(top)
        self.warned = False

    def _parameter_groups(self) -> dict[str, dict[str, Any]]:
        groups: dict[str, list[nn.Parameter]] = {}
        memories, gates = self.student.memories, self.student.gates
        if memories is not None:
            groups["lora"], groups["kv"] = list(memories.lora_parameters()), list(memories.kv_parameters())
        if self.train_gates and gates is not None:
            groups["gates"] = list(gates.parameters())
        betas = {"gates": GATE_BETAS}
        return {name: {"params": params, "name": name, "betas": betas.get(name, BETAS)} for name, params in groups.items() if params}

    def trainables(self) -> dict[str, Tensor]:
        """Every tensor a checkpoint holds, gates included in `recover` too: the mask derives from them."""
        memories, gates = self.student.memories, self.student.gates
        tensors = {} if memories is None else memories.tensors()
        if gates is not None:
            tensors |= {f"gates.{name}": value for name, value in gates.log_alpha.items()}
        return tensors

    def run(self, resume: Checkpoint | None) -> None:
        first = 0
        if resume is not None:
            first = resume.step
            restore(resume, self.trainables(), self.context.run.checkpoints_dir)
            if self.optimizer is not None:
                restore_moments(self.optimizer, self.tensor_names, resume)
            self.controller.weight = resume.extra["lambda"]
        steps = self.options.max_steps if self.optimizer is not None else 0
        self.context.progress.start(self.name, steps, first)
        for step in range(first, steps):
            figures = self._step(step)
            self.context.run.append_metrics({"stage": self.name, "step": step + 1, **figures})
            self._track(step + 1, figures)
            self.context.progress.advance(self.name, step + 1, figures)
            done, stopping = step + 1, self.context.stop()
            if stopping or (done % self.recipe.train.checkpoint_every == 0 and done < steps):
                self.checkpoint(done)
            if stopping:
                raise Interrupted(f"interrupted in {self.name} after step {done} of {steps}; continue with the same command and --resume.")
        self.checkpoint(steps)

    def checkpoint(self, step: int) -> None:
        moments = {} if self.optimizer is None else optimizer_moments(self.optimizer, self.tensor_names)
        state = Checkpoint(self.name, step, dict(self.trainables()), moments, {"lambda": self.controller.weight})
        save_checkpoint(self.context.run.checkpoints_dir, self.names.index(self.name), state)

    def _step(self, step: int) -> dict[str, Any]:
        begin = time.perf_counter()
        figures: dict[str, float] = {}
        tokens = 0
        accumulation = self.recipe.train.gradient_accumulation
        domain, retention = self._plan_step(step)
        for part in range(accumulation):
            batch = self._batch(step, part, domain, retention).to(self.context.accelerator.device)
            tokens += batch.numel()
            loss, found = self._loss(batch, step * accumulation + part, domain)
            for key, value in found.items():
                figures[key] = figures.get(key, 0.0) + value / accumulation
            self._require_finite(figures, step)
            self.context.accelerator.backward(loss / accumulation)
        self._update(step, retention)
        figures |= self._sparsity()
        seconds = time.perf_counter() - begin
        self._warn_coverage(figures)
        return figures | {
            "domain": "retention" if retention else domain or "",
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory": _peak_memory(self.context.accelerator.device),
        }

    def _plan_step(self, step: int) -> tuple[str, bool]:
        """The domain of a step (shuffled round robin), and whether it is a retention step (then: whose memory is attached)."""
        domains = self.context.corpus.domains
        every = self.recipe.distill.retention_every
        if self.train_gates and self.context.corpus.retention is not None and step % every == every - 1:
            return domains[int(np.random.default_rng((self.recipe.seed, 1, step)).integers(len(domains)))], True
        cycle, place = divmod(step, len(domains))
        return domains[int(np.random.default_rng((self.recipe.seed, 2, cycle)).permutation(len(domains))[place])], False

    def _batch(self, step: int, part: int, domain: str, retention: bool) -> Tensor:
        every = self.recipe.distill.retention_every
        stream = self.context.corpus.retention if retention else self.context.corpus.train[domain]
        assert stream is not None
        visit = step // every if retention else step // len(self.context.corpus.domains)
        visit = visit * self.recipe.train.gradient_accumulation + part
        offset = self.names.index(self.name)
        return stream.batch(visit, self.options.batch_size, self.recipe.sequence_length, self.recipe.seed + 1000 * offset)

    def _loss(self, batch: Tensor, draw: int, domain: str) -> tuple[Tensor, dict[str, float]]:
        student, accelerator = self.student, self.context.accelerator
        memory = domain if student.memories is not None and student.memories.exist else None
        with accelerator.autocast():
            with torch.no_grad():
                teacher = self.context.unpruned(batch)
            if self.train_gates and student.gates is not None:
                generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + draw)
                values: Mapping[str, Tensor] | None = student.gates.sample(generator)
            else:
                values = self.context.masks
            hidden = student(batch, values, memory)
            kl, covered = distillation_loss(
                hidden.flatten(0, 1), teacher.flatten(0, 1), student.head, self.top, self.recipe.distill.chunk_tokens
            )
        loss, figures = kl, {"kl": kl.item(), "covered_mass": covered.item()}
        if self.train_gates and student.gates is not None:
            active, target = self._active_and_target()
            penalty = self.controller.penalty(active, target)
            figures |= {"penalty": penalty.item(), "lambda": self.controller.weight}
            loss = loss + penalty
        return loss, figures

    def _active_and_target(self) -> tuple[Tensor, Tensor]:
        """Expected active fraction and its target, [structures * L]: in `uniform` every layer has its own target."""
        assert self.student.gates is not None
        budget = self.context.budget
        fractions = self.student.gates.active_fraction()
        targets = [torch.full_like(v, budget.keep[name] / budget.total_units[name]) for name, v in fractions.items()]
        return torch.cat(list(fractions.values())), torch.cat(targets)

    def _require_finite(self, figures: Mapping[str, float], step: int) -> None:
        if not math.isfinite(figures["kl"]):
            raise IntegrityError(
                f"{self.name}: the loss is {figures['kl']} at step {step + 1}; nothing of this step was kept. Lower stages.{self.name}.lr, "
                f"or resume from the last checkpoint in {self.context.run.checkpoints_dir}."
            )

    def _update(self, step: int, retention: bool) -> None:
        assert self.optimizer is not None
        rates = self.options.lr
        scale = self._rate_scale(step)
        for group in self.optimizer.param_groups:
            group["lr"] = getattr(rates, group["name"]) * (1.0 if group["name"] == "gates" else scale)
            if retention and group["name"] != "gates":
                for parameter in group["params"]:
                    parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.train_gates and self.student.gates is not None:
            with torch.no_grad():
                self.controller.update(*self._active_and_target())

    def _rate_scale(self, step: int) -> float:
        warmup, total = self.options.warmup_steps, self.options.max_steps
        if step < warmup:
            return (step + 1) / warmup
        passed = (step - warmup) / max(1, total - warmup)
        decays = {"constant": 1.0, "linear": 1.0 - passed, "cosine": 0.5 * (1 + math.cos(math.pi * passed))}
        return decays[self.options.decay]

    def _sparsity(self) -> dict[str, float]:
        """Fraction of all base parameters that the gates now expect to remove, and that the hard mask removes."""
        gates, budget = self.student.gates, self.context.budget
        figures = {"sparsity": budget.global_sparsity}
        if self.train_gates and gates is not None:
            with torch.no_grad():
                gone = sum(
                    float((1 - fraction).sum()) * budget.total_units[name] * budget.params_per_unit[name]
                    for name, fraction in gates.active_fraction().items()
                )
            figures["expected_sparsity"] = gone / budget.base_params
        return figures

    def _track(self, step: int, figures: Mapping[str, Any]) -> None:
        """To the trackers of accelerate, steps counted through all stages."""
        if self.recipe.train.trackers:
            before = [stage.options.max_steps for stage in self.recipe.stages[: self.names.index(self.name)]]
            numbers = {f"{self.name}/{key}": value for key, value in figures.items() if not isinstance(value, str)}
            self.context.accelerator.log(numbers, step=sum(before) + step)

    def _warn_coverage(self, figures: Mapping[str, Any]) -> None:
        if figures["covered_mass"] < LOW_COVERAGE and not self.warned:
            self.warned = True
            remedy = "Raise distill.top_k, or give it by coverage: {coverage: 0.98}."
            if self.top.coverage is not None:
                remedy = "Raise distill.top_k.coverage or distill.top_k.max."
            self.context.progress.warn(
                f"the teacher tokens told apart cover {figures['covered_mass']:.0%} of its mass (below {LOW_COVERAGE:.0%}); the tail is "
                f"hardly constrained. {remedy}"
            )


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the allocator on a GPU, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def flatten(values: Mapping[str, Tensor]) -> Iterator[tuple[int, str, Tensor]]:
    """`(layer, structure, row)` of gate tensors [L, U]."""
    for structure, table in values.items():
        for index, row in enumerate(table):
            yield index, structure, row
