"""KL on held-out text while a stage trains, for whoever watches it, and for a stage that ends when it no
longer falls.

No step depends on it: no random number is drawn, and no gradient computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from ..method.likelihood import TokenSums, add_tokens, projected
from ..parallel import ranks
from ..recipe.training import Training
from ..report.gates import gates_warning
from .context import Context

MAX_TOKENS = 2048
"""Of each domain, the last ones, for stage `evaluate` begins with the first: enough to see where the KL
goes."""


class Watch:
    """Measures the KL on held-out text now and then, and says when a stage has learned all that it will.

    Args:
        context: see `Context`.
        options: the stage's options.
        train_gates: whether the stage learns masks; otherwise the context's are fixed.
        with_memory: whether it learns memories.
    """

    def __init__(self, context: Context, options: Training, *, train_gates: bool, with_memory: bool) -> None:
        self.context, self.options = context, options
        self.with_memory = with_memory
        self.gates = context.student.gates if train_gates else None
        self.every = context.loaded.recipe.train.evaluate_every
        self.lowest: float | None = None
        self.in_vain = 0  # measurements in a row that were not below the lowest

    @property
    def spent(self) -> bool:
        """Whether the stage's patience is at its end."""
        return self.options.patience is not None and self.in_vain >= self.options.patience

    def after(self, done: int, figures: Mapping[str, float]) -> dict[str, float]:
        """`heldout_kl`, if it is measured after this step, with the masks that would be kept now.

        Args:
            done: how many steps are done.
            figures: of the last step; with gates `expected_sparsity` and `sparsity`, the target.
        """
        if self.every is None or done % self.every:
            return {}
        kl = ranks.of_leader(self.measured())  # all processes end the stage at the same step
        if self.options.patience is not None and self._counts(done, figures):
            better = self.lowest is None or kl < self.lowest
            self.lowest, self.in_vain = (kl, 0) if better else (self.lowest, self.in_vain + 1)
        return {"heldout_kl": kl}

    def measured(self) -> float:
        """The KL now, in nats per token."""
        masks = self.context.masks if self.gates is None else self.gates.fixed(self.context.budget)
        return heldout_kl(self.context, masks, self.options.batch_size, with_memory=self.with_memory)

    def begin(self, stage: str) -> None:
        """Warn where the text that may end the stage is scored in the end, too.

        Args:
            stage: its name.
        """
        recipe, heldout = self.context.loaded.recipe, self.context.corpus.heldout
        scored = [entry.options.max_tokens for entry in recipe.stages if entry.name == "evaluate"]
        if self.options.patience is None or not scored:
            return
        twice = [
            name
            for name, stream in heldout.items()
            if scored[0] is None or 0 < len(stream.tokens) < scored[0] + MAX_TOKENS
        ]
        if twice:
            self.context.progress.warn(
                f"{stage}: the held-out text that patience looks at is also scored by stage evaluate in "
                f"{', '.join(twice)}; figures there are a little too good. Hold out more text (holdout), or "
                "lower stages.evaluate.max_tokens."
            )

    def verdict(self, stage: str, done: int) -> str:
        """Why the stage ends after step `done`."""
        return (
            f"{stage} ends after step {done} of {self.options.max_steps}: the KL on held-out text was "
            f"{self.lowest:.4f} and has not fallen for {self.in_vain} measurements (patience)."
        )

    def _counts(self, done: int, figures: Mapping[str, float]) -> bool:
        """Before the gates are at their target, the KL rises because ever more is shut."""
        if self.gates is None:
            return True
        arrived = done >= self.context.loaded.recipe.mask.reach_by * self.options.max_steps
        ends = {"expected_sparsity": figures["expected_sparsity"], "target": figures["sparsity"]}
        return arrived and gates_warning(ends) is None

    def state(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps."""
        return {"lowest": self.lowest, "in_vain": self.in_vain}

    def load(self, state: Mapping[str, float | int | None]) -> None:
        """The inverse of `state`; checkpoints of earlier versions have none."""
        self.lowest, self.in_vain = state.get("lowest"), int(state.get("in_vain") or 0)


def heldout_kl(
    context: Context, values: Mapping[str, Tensor] | None, batch_size: int, *, with_memory: bool
) -> float:
    """KL(unpruned || student with the matched memory) in nats per token, the mean over the domains that have
    held-out text.

    Args:
        context: its corpus has the held-out text.
        values: gates [L, U] by name, 0 or 1; None: all open.
        batch_size: sequences at a time.
        with_memory: attach each domain's memory; else the student has none.
    """
    with torch.no_grad():
        return fmean(
            _domain_kl(context, domain, values, batch_size, domain if with_memory else None)
            for domain in context.corpus.domains
            if len(context.corpus.heldout[domain].tokens)
        )


def _domain_kl(
    context: Context, domain: str, values: Mapping[str, Tensor] | None, batch_size: int, memory: str | None
) -> float:
    recipe, sums = context.loaded.recipe, TokenSums()
    batches = context.corpus.heldout[domain].sequences(
        recipe.sequence_length, batch_size, MAX_TOKENS, from_end=True
    )
    head = context.student.head
    for batch in batches:
        batch = batch.to(context.accelerator.device)
        with context.accelerator.autocast():
            teacher = context.unpruned(batch.ids, batch.positions)
            student = context.student(batch.ids, values, memory, batch.positions)
        add_tokens(
            sums,
            batch.ids.numel(),
            projected(student.flatten(0, 1), head),
            reference=projected(teacher.flatten(0, 1), head),
            chunk_tokens=recipe.distill.chunk_tokens,
        )
    return sums.mean_kl
