"""The distillation loop that `learn_masks` and `recover` share.

A domain step takes a batch of one domain with its memory attached; every `retention_every` steps a batch of
retention text with a random memory updates the mask only (method, section 4). What happens at a step is a
pure function of (seed, step).
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import IntegrityError, Interrupted
from ..method.controller import make_controller
from ..method.losses import Objective, TopK, training_loss
from ..recipe.schema import Coverage, LearnMasks, Training
from .checkpoint import Checkpoint, optimizer_moments, restore, restore_moments, save_checkpoint
from .context import Context
from .figures import gradient_figures, rates
from .parity import check_first_masks
from .saliency import warm_start
from .schedule import Schedule

LOW_COVERAGE = 0.9
BETAS = (0.9, 0.999)
# A long memory of squared gradients would hold the gates where the sparsity hinge, while it was on, has
# pushed them.
GATE_BETAS = (0.9, 0.98)


class DistillationLoop:
    """One training stage. `train_gates` tells `learn_masks` from `recover`."""

    def __init__(self, context: Context, name: str, options: Training, *, train_gates: bool) -> None:
        self.context, self.name, self.options, self.train_gates = context, name, options, train_gates
        self.recipe = context.loaded.recipe
        self.names = [stage.name for stage in self.recipe.stages]
        self.student = context.student
        # Masks of their own: memories wait for `recover`.
        self.with_memory = self.student.memories is not None and self.student.memories.exist
        if isinstance(options, LearnMasks) and not options.joint:
            self.with_memory = False
        self.groups = self._parameter_groups()
        self.tensor_names = {tensor: key for key, tensor in self.trainables().items()}
        self.optimizer = (
            torch.optim.AdamW(list(self.groups.values()), lr=1.0, weight_decay=0.0) if self.groups else None
        )
        mask = self.recipe.mask
        self.controller = make_controller(
            mask.controller,
            lambda_init=mask.lambda_init,
            lambda_rate=mask.lambda_rate,
            rise_steps=int(mask.reach_by * options.max_steps),
        )
        distill = self.recipe.distill
        top = (
            TopK(distill.top_k.max, distill.top_k.coverage)
            if isinstance(distill.top_k, Coverage)
            else TopK(distill.top_k)
        )
        self.objective = Objective(distill.loss, top, distill.blend)
        retention = train_gates and context.corpus.retention is not None
        self.schedule = Schedule(self.recipe, context.corpus.domains, options, retention)
        self.warned = False

    def _parameter_groups(self) -> dict[str, dict[str, Any]]:
        groups: dict[str, list[nn.Parameter]] = {}
        memories, gates = self.student.memories, self.student.gates
        if memories is not None and self.with_memory:
            groups["lora"], groups["kv"] = list(memories.lora_parameters()), list(memories.kv_parameters())
        if self.train_gates and gates is not None:
            groups["gates"] = list(gates.parameters())
        betas = {"gates": GATE_BETAS}
        return {
            name: {"params": params, "name": name, "betas": betas.get(name, BETAS)}
            for name, params in groups.items()
            if params
        }

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
            self.controller.load(resume.extra["controller"])
        elif self.train_gates:
            warm_start(self.context, self.options)
            check_first_masks(self.context)
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
                raise Interrupted(
                    f"interrupted in {self.name} after step {done} of {steps}; continue with the same "
                    "command and --resume."
                )
        self.checkpoint(steps)

    def checkpoint(self, step: int) -> None:
        moments = {} if self.optimizer is None else optimizer_moments(self.optimizer, self.tensor_names)
        state = Checkpoint(
            self.name, step, dict(self.trainables()), moments, {"controller": self.controller.state()}
        )
        save_checkpoint(self.context.run.checkpoints_dir, self.names.index(self.name), state)

    def _step(self, step: int) -> dict[str, Any]:
        begin = time.perf_counter()
        figures: dict[str, float] = {}
        tokens = 0
        accumulation = self.recipe.train.gradient_accumulation
        domain, retention = self.schedule.step(step)
        self._set_temperature(self.schedule.temperature(step))
        for part in range(accumulation):
            batch, counted = self._batch(step, part, domain, retention)
            tokens += batch.numel()
            loss, found = self._loss(batch, counted, step * accumulation + part, domain)
            for key, value in found.items():
                figures[key] = figures.get(key, 0.0) + value / accumulation
            self._require_finite(figures, step)
            with span("backward"):
                self.context.accelerator.backward(loss / accumulation)
        figures |= gradient_figures(self.groups)
        with span("update"):
            self._update(step, retention)
        figures |= self._sparsity()
        seconds = time.perf_counter() - begin
        self._warn_coverage(figures)
        return figures | {
            **rates(self.optimizer),
            "wall_time": round(time.time(), 3),
            "domain": "retention" if retention else domain or "",
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory": peak_memory(self.context.accelerator.device),
        }

    def _set_temperature(self, temperature: float) -> None:
        if self.student.gates is not None and self.train_gates:
            self.student.gates.temperature = temperature

    def _batch(self, step: int, part: int, domain: str, retention: bool) -> tuple[Tensor, Tensor | None]:
        """Token ids [B, T], and which of them the loss counts (None: all)."""
        visit = self.schedule.visit(step, retention) * self.recipe.train.gradient_accumulation + part
        return self.batch_of(None if retention else domain, visit)

    def batch_of(self, domain: str | None, visit: int) -> tuple[Tensor, Tensor | None]:
        """The `visit`-th batch of a domain, or (None) of retention text."""
        stream = self.context.corpus.retention if domain is None else self.context.corpus.train[domain]
        assert stream is not None
        offset = self.names.index(self.name)
        place = (
            visit,
            self.options.batch_size,
            self.recipe.sequence_length,
            self.recipe.seed + 1000 * offset,
        )
        device, counted = self.context.accelerator.device, stream.counted(*place)
        return stream.batch(*place).to(device), None if counted is None else counted.to(device)

    def _loss(
        self, batch: Tensor, counted: Tensor | None, draw: int, domain: str
    ) -> tuple[Tensor, dict[str, float]]:
        """What is minimised, and its terms as numbers."""
        loss, figures = self.distillation(
            batch, counted, domain if self.with_memory else None, self._gate_values(draw)
        )
        if self.train_gates and self.student.gates is not None:
            penalty = self.controller.penalty(*self._active_and_target())
            figures |= {"penalty": penalty.item(), "lambda": self.controller.strength}
            loss = loss + penalty
        return loss, figures

    def distillation(
        self, batch: Tensor, counted: Tensor | None, memory: str | None, values: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of the student with these gate values and this memory, without the sparsity penalty.

        Args:
            batch: token ids [B, T]. counted: which of them the loss counts, [B, T]; None: all.
        """
        student, accelerator, objective = self.student, self.context.accelerator, self.objective
        with accelerator.autocast():
            teacher = None
            if objective.needs_teacher:
                with span("teacher"), torch.no_grad():
                    teacher = self.context.unpruned(batch)
            with span("student"):
                hidden = student(batch, values, memory)
            positions = torch.ones_like(batch, dtype=torch.bool)
            if (
                objective.needs_labels or counted is not None
            ):  # a position counts for the token that follows it
                positions = torch.nn.functional.pad(
                    positions[:, 1:] if counted is None else counted[:, 1:], (0, 1), value=False
                )
            labels = batch.roll(-1, 1)[positions] if objective.needs_labels else None
            rows = None if teacher is None else teacher[positions]
            chunk = self.recipe.distill.chunk_tokens
            with span("loss"):
                loss, covered, terms = training_loss(
                    hidden[positions], rows, labels, student.head, objective, chunk
                )
        return loss, {"loss": loss.item(), "covered_mass": covered.item()} | {
            name: value.item() for name, value in terms.items()
        }

    def _gate_values(self, draw: int) -> Mapping[str, Tensor] | None:
        """Gates [L, U] by name, sampled or hard."""
        if not self.train_gates or self.student.gates is None:
            return self.context.masks
        values: Mapping[str, Tensor] = self.student.gates.sample(
            torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + draw)
        )
        return values

    def _active_and_target(self) -> tuple[Tensor, Tensor]:
        """Expected active fractions and their targets, one entry a constraint: for `uniform` every layer of a
        structure, for `ragged` all removable parameters together, and a masked-only structure one."""
        student, budget = self.student, self.context.budget
        assert student.gates is not None
        active, target = [], []
        total = sum(budget.total_units[name] * budget.params_per_unit[name] for name in budget.removable)
        for name, fraction in student.gates.active_fraction().items():
            if budget.layout == "ragged" and budget.params_per_unit[name]:
                active.append(
                    fraction.mean() * (budget.total_units[name] * budget.params_per_unit[name] / total)
                )
                continue
            active.append(fraction)
            target.append(torch.full_like(fraction, budget.keep[name] / budget.total_units[name]))
        if budget.layout == "ragged":
            shares = [part for part in active if part.dim() == 0]
            active = [part for part in active if part.dim()] + [torch.stack(shares).sum().reshape(1)]
            share = budget.target_params / (total * student.spec.num_layers)
            target.append(torch.full_like(active[-1], 1 - share))
        return torch.cat(active), torch.cat(target)

    def _require_finite(self, figures: Mapping[str, float], step: int) -> None:
        if not math.isfinite(figures["loss"]):
            raise IntegrityError(
                f"{self.name}: the loss is {figures['loss']} at step {step + 1}; nothing of this step was "
                "kept. "
                f"Lower stages.{self.name}.lr, or resume from the last checkpoint in "
                f"{self.context.run.checkpoints_dir}."
            )

    def _update(self, step: int, retention: bool) -> None:
        assert self.optimizer is not None
        rates = self.options.lr
        scale = self.schedule.rate_scale(step)
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

    def _sparsity(self) -> dict[str, float]:
        """Fraction of all base parameters that the gates now expect to remove, and that the hard mask
        removes."""
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
            numbers = {
                f"{self.name}/{key}": value for key, value in figures.items() if not isinstance(value, str)
            }
            self.context.accelerator.log(numbers, step=sum(before) + step)

    def _warn_coverage(self, figures: Mapping[str, Any]) -> None:
        if figures["covered_mass"] < LOW_COVERAGE and not self.warned:
            self.warned = True
            remedy = "Raise distill.top_k, or give it by coverage: {coverage: 0.98}."
            if self.objective.top.coverage is not None:
                remedy = "Raise distill.top_k.coverage or distill.top_k.max."
            self.context.progress.warn(
                f"the teacher tokens told apart cover {figures['covered_mass']:.0%} of its mass (below "
                f"{LOW_COVERAGE:.0%}); the tail is "
                f"hardly constrained. {remedy}"
            )


def span(name: str) -> Any:
    """A part of a step, by name, for torch's profiler; costs nothing when none is running."""
    return torch.profiler.record_function(f"koffkit.{name}")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the allocator on a GPU, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
