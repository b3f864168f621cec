"""The distillation loop that `learn_masks` and `recover` share.

A domain step takes a batch of one domain with its memory attached; every `retention_every` steps a batch of
retention text with a random memory updates what all domains share, the mask or the backbone, and that memory
only if asked to (method, section 4).
What happens at a step is a pure function of (seed, step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import IntegrityError, Interrupted
from ..method.controller import make_controller
from ..method.losses.base import Objective
from ..model.batch import Batch
from ..parallel import ranks
from ..planning.shares import Share
from ..recipe.training import Training
from .checkpoint import Checkpoint, optimizer_moments, restore, restore_moments, save_checkpoint
from .context import Context
from .distilling import distilled
from .figures import LOW_MASS, gradient_figures, gradients, low_mass, peak_memory_figures, rates
from .heldout import Watch
from .optimizer import SHARED, parameter_groups
from .parity import check_first_masks
from .profile import span
from .saliency import warm_start
from .schedule import Schedule
from .shares import own_shares
from .sparsity import active_and_target, sparsity_figures
from .tracking import track
from .waiting import others_waiting


class DistillationLoop:
    """The training of one stage.

    Args:
        context: see `Context`.
        name: the stage's name in the recipe.
        options: the stage's options.
        train_gates: whether masks are learned; otherwise the context's masks are fixed.
        train_memories: whether memories are learned, if there are any.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        options: Training,
        *,
        train_gates: bool,
        train_memories: bool = True,
    ) -> None:
        self.context, self.name, self.options, self.train_gates = context, name, options, train_gates
        self.recipe = context.loaded.recipe
        self.names = [stage.name for stage in self.recipe.stages]
        self.student = context.student
        memories = self.student.memories
        self.with_memory = train_memories and memories is not None and memories.exist
        self.groups = parameter_groups(
            self.student, gates=train_gates, memories=self.with_memory, backbone=context.backbone.values()
        )
        self.tensor_names = {tensor: key for key, tensor in context.tensors().items()}
        self.optimizer = (
            torch.optim.AdamW(list(self.groups.values()), lr=1.0, weight_decay=0.0) if self.groups else None
        )
        mask = self.recipe.mask
        self.controller = make_controller(
            mask.controller,
            lambda_init=mask.lambda_init,
            lambda_rate=mask.lambda_rate,
            rise_steps=int(mask.reach_by * options.max_steps),
            scaling=mask.lambda_scaling,
        )
        self.objective = Objective.named(self.recipe.distill.loss, self.recipe.distill)
        retention = context.corpus.retention is not None and not set(SHARED).isdisjoint(self.groups)
        self.schedule = Schedule(self.recipe, context.corpus.domains, options, retention)
        self.watch = Watch(context, options, train_gates=train_gates, with_memory=self.with_memory)
        self.warned = False

    def run(self, resume: Checkpoint | None) -> None:
        paged = self.student.memories if self.recipe.train.page_memories else None
        with others_waiting(paged, self.optimizer, self.context.accelerator.device):
            self._run(resume)

    def _run(self, resume: Checkpoint | None) -> None:
        first = 0
        if resume is not None:
            first = resume.step
            restore(resume, self.context.tensors(), self.context.run.checkpoints_dir)
            if self.optimizer is not None:
                restore_moments(self.optimizer, self.tensor_names, resume)
            self.controller.load(resume.extra["controller"])
            self.watch.load(resume.extra.get("watch", {}))
        elif self.train_gates:
            warm_start(self.context, self.options)
            check_first_masks(self.context)
        ranks.take_from_leader(self.context.tensors().values())
        steps = self.options.max_steps if self.optimizer is not None else 0
        self.context.progress.start(self.name, steps, first)
        self.watch.begin(self.name)
        for step in range(first, first if self.watch.spent else steps):
            figures = self._step(step)
            figures |= self.watch.after(step + 1, figures)
            self.context.run.append_metrics({"stage": self.name, "step": step + 1, **figures})
            track(self.context, self.name, step + 1, figures)
            self.context.progress.advance(self.name, step + 1, figures)
            done, stopping, spent = step + 1, self.context.stop(), self.watch.spent
            if stopping or spent or (done % self.recipe.train.checkpoint_every == 0 and done < steps):
                self.checkpoint(done)
            if spent:
                self.context.progress.message(self.watch.verdict(self.name, done))
                return
            if stopping:
                raise Interrupted(
                    f"interrupted in {self.name} after step {done} of {steps}; continue with the same "
                    "command and --resume."
                )
        if not self.watch.spent:
            self.checkpoint(steps)

    def checkpoint(self, step: int) -> None:
        moments = {} if self.optimizer is None else optimizer_moments(self.optimizer, self.tensor_names)
        extra = {"controller": self.controller.state(), "watch": self.watch.state()}
        state = Checkpoint(self.name, step, dict(self.context.tensors()), moments, extra)
        save_checkpoint(self.context.run.checkpoints_dir, self.names.index(self.name), state)

    def _step(self, step: int) -> dict[str, Any]:
        begin = time.perf_counter()
        figures: dict[str, float] = {}
        accumulation = self.recipe.train.gradient_accumulation
        domain, retention = self.schedule.step(step)
        self._set_temperature(self.schedule.temperature(step))
        for share in own_shares(self.recipe, self.options, retention=retention):
            batch = self._batch(step, share.part, domain, retention)
            loss, terms = self._loss(batch, share, step * accumulation + share.part, domain)
            for key, value in terms.items():
                figures[key] = figures.get(key, 0.0) + value / accumulation
            figures["tokens"] = figures.get("tokens", 0) + batch.rows(share.rows).ids.numel()
            with span("backward"):
                self.context.accelerator.backward(loss / accumulation)
        figures = ranks.added_up(figures)
        tokens = int(figures.pop("tokens"))
        self._require_finite(figures, step)
        ranks.add_up(gradients(self.groups))
        figures |= gradient_figures(self.groups)
        with span("update"):
            self._update(step, retention)
        gates = self.student.gates if self.train_gates else None
        figures |= sparsity_figures(gates, self.context.budget, self.recipe.mask.local_sparsity)
        seconds = time.perf_counter() - begin
        self._warn_low_mass(figures["covered_mass"])
        return figures | {
            **rates(self.optimizer),
            "wall_time": round(time.time(), 3),
            "domain": "retention" if retention else domain or "",
            "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            **peak_memory_figures(self.context.accelerator.device),
        }

    def _set_temperature(self, temperature: float) -> None:
        if self.student.gates is not None and self.train_gates:
            self.student.gates.temperature = temperature

    def _batch(self, step: int, part: int, domain: str, retention: bool) -> Batch:
        visit = self.schedule.visit(step, retention) * self.recipe.train.gradient_accumulation + part
        return self.batch_of(None if retention else domain, visit)

    def batch_of(self, domain: str | None, visit: int) -> Batch:
        """The batch with the number `visit` of a domain, or of retention text for None."""
        stream = self.context.corpus.retention if domain is None else self.context.corpus.train[domain]
        assert stream is not None
        offset = self.names.index(self.name)
        of_retention = self.recipe.distill.retention_batch_size if domain is None else None
        place = (
            visit,
            of_retention or self.options.batch_size,
            self.recipe.sequence_length,
            self.recipe.seed + 1000 * offset,
        )
        return stream.batch(*place).to(self.context.accelerator.device)

    def _loss(self, batch: Batch, share: Share, sample: int, domain: str) -> tuple[Tensor, dict[str, float]]:
        """The loss to minimise, and its terms as numbers; what the processes have adds up to both."""
        loss, figures = self.distillation(
            batch, domain if self.with_memory else None, self._gate_values(sample), share
        )
        if self.train_gates and self.student.gates is not None:
            penalty = self.controller.penalty(*self._active_and_target()) * share.fraction
            figures |= {"penalty": penalty.item(), "lambda": self.controller.strength * share.fraction}
            loss = loss + penalty
        return loss, figures

    def distillation(
        self,
        batch: Batch,
        memory: str | None,
        values: Mapping[str, Tensor] | None,
        share: Share | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of the student with these gate values and this memory, without the sparsity penalty.

        Args:
            batch: sequences.
            memory: the domain whose memory is attached, or None.
            values: gates [L, U] by name; None: all off.
            share: what of the batch is computed; None: all of it.

        Returns:
            The differentiable loss, and its terms as numbers.
        """
        student, objective = self.student, self.objective
        lower = self.context.lower_layers(values, sampled=self.train_gates)
        of = None  # the loss is a mean over this many positions; None: those at hand
        if share is not None and not share.whole:
            of, batch = int(batch.scored(labels=objective.loss.needs_labels).sum()), batch.rows(share.rows)
        loss, covered, terms = distilled(
            self.context,
            objective,
            batch,
            lambda: student(batch.ids, values, memory, batch.positions),
            lower,
            of,
        )
        if share is not None and of == 0:
            covered = covered * share.fraction
        return loss, {"loss": loss.item(), "covered_mass": covered.item()} | {
            name: value.item() for name, value in terms.items()
        }

    def _gate_values(self, sample: int) -> Mapping[str, Tensor] | None:
        """Gates [L, U] by name, sampled or hard."""
        if not self.train_gates or self.student.gates is None:
            return self.context.masks
        values: Mapping[str, Tensor] = self.student.gates.sample(
            torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + sample)
        )
        return values

    def _active_and_target(self) -> tuple[Tensor, Tensor]:
        """Expected active fractions and their targets, one entry per constraint."""
        student = self.student
        assert student.gates is not None
        return active_and_target(student.gates, self.context.budget, self.recipe.mask.local_sparsity)

    def _require_finite(self, figures: Mapping[str, float], step: int) -> None:
        if not math.isfinite(figures["loss"]):
            raise IntegrityError(
                f"{self.name}: the loss is {figures['loss']} at step {step + 1}; nothing was kept of it. "
                f"Lower stages.{self.name}.lr, or resume from the last checkpoint in "
                f"{self.context.run.checkpoints_dir}."
            )

    def _update(self, step: int, retention: bool) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            shared = group["name"] in SHARED
            group["lr"] = self._rate(group["name"], step)
            if retention and not shared and self.recipe.distill.retention_updates == "mask":
                for parameter in group["params"]:
                    parameter.grad = None
        if self.recipe.train.max_gradient_norm is not None:
            parameters = [parameter for group in self.groups.values() for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.recipe.train.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.train_gates and self.student.gates is not None:
            with torch.no_grad():
                self.controller.update(*self._active_and_target())

    def _rate(self, name: str, step: int) -> float:
        """The learning rate of a parameter group; that of scales stays constant."""
        if name == "gates":
            return self.schedule.gate_rate(step)
        if name == "scales":
            return self.options.lr.scales
        return self.schedule.memory_rate(name) * self.schedule.rate_scale(step)

    def _warn_low_mass(self, covered: float) -> None:
        if covered < LOW_MASS and not self.warned:
            self.warned = True
            self.context.progress.warn(low_mass(covered, self.recipe.distill.top_k))
