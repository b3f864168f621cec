"""Recipe fields for training, and the options of every training stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ..strict import Positive, Rate, StrictModel


class Train(StrictModel):
    precision: Literal["no", "bf16"] = Field("no", description="Automatic mixed precision.")
    float32_matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="How products of float32 matrices are computed (torch.set_float32_matmul_precision): "
        "high lets a GPU use TF32, medium rounds what is multiplied to bfloat16, also on CPUs that have "
        "instructions for that. Weights, sums and all else stay float32; checks of parity use float64.",
    )
    gradient_accumulation: Positive = Field(1, description="Batches whose gradients add up to one step.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, more time."
    )
    page_memories: bool = Field(
        False,
        description="While a memory trains, those of the other domains wait in the CPU's memory, with their "
        "AdamW moments: an accelerator then needs room for one, and every change of domain takes the time "
        "of a copy. Refused where the CPU computes.",
    )
    max_gradient_norm: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Gradients of all that is learned are scaled down to this norm; by default never.",
    )
    checkpoint_every: Positive = Field(200, description="Steps between checkpoints.")
    evaluate_every: Positive | None = Field(
        None, description="Steps between measurements of the KL on held-out text; by default none are made."
    )
    trackers: list[str] = Field([], description="Trackers of accelerate: tensorboard, wandb, ...")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false


class LearningRates(StrictModel):
    lora: Rate | None = Field(
        None,
        description="Learning rate of the LoRA matrices. By default 0.012 / sqrt(steps of one memory), at "
        "least 1e-4 and at most 1e-3.",
    )
    kv: Rate = Field(1e-2, description="Learning rate of the KV memory.")
    neurons: Rate = Field(1e-4, description="Learning rate of restored neurons that are tuned.")
    backbone: Rate | None = Field(
        None,
        description="In recover: learning rate of the backbone's weights that read pruned units (down and "
        "output projections), which train for all domains at once; by default they stay the base's, as in "
        "the paper.",
    )
    gates: Rate | None = Field(
        None,
        description="Learning rate of the gates, constant. By default 16 / max_steps, at least 0.01, up to "
        "mask.reach_by of the steps; from there it falls to a tenth.",
    )
    scales: Rate = Field(
        1e-3, description="Learning rate of the scales of mask.gates: top_k; it stays constant."
    )


class Training(StrictModel):
    """Options of a stage that trains; a plan counts the tokens of every such stage."""

    max_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(description="Optimiser steps.")
    batch_size: Positive = Field(2, description="Sequences in a batch.")
    lr: LearningRates = Field(LearningRates(), description="AdamW's learning rates.")
    warmup_steps: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0, description="Steps in which the memory's learning rates rise to their values."
    )
    decay: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How the memory's learning rates fall after that; the gates' stays constant."
    )
    patience: Positive | None = Field(
        None,
        description="End the stage early, after so many measurements of the KL on held-out text in a row "
        "(every train.evaluate_every steps) that are not below the lowest; in learn_masks those count that "
        "are made after mask.reach_by of the steps, while the gates are at their target. By default never.",
    )

    def check_patience(self, train: Train) -> None:
        """Refuse to wait for measurements that are never made.

        Raises:
            ValueError: with the fields and the remedy.
        """
        if self.patience is not None and train.evaluate_every is None:
            raise ValueError(
                f"patience: {self.patience} counts measurements of the KL on held-out text, and "
                "train.evaluate_every makes none; set it, or leave patience out"
            )
