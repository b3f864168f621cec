"""Recipe fields of what the student is trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from .. import plugins
from ..strict import Positive, StrictModel
from . import plugin_options

if TYPE_CHECKING:
    LossName = str
else:  # whatever is installed
    LossName = Literal[tuple(plugins.names(plugins.LOSSES))]


@plugin_options.with_options_of(plugins.LOSSES, "distill.loss")
class Distill(StrictModel):
    """What the student is trained on; each loss brings its own options."""

    loss: LossName = Field(
        "top_k",
        description="KL on the teacher's top tokens, full KL, the text itself (SFT), or KL and text blended.",
    )
    domain_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        {}, description="How often each domain is drawn; a domain that is not named has weight 1."
    )
    chunk_tokens: Positive = Field(1024, description="Tokens whose logits exist at one time.")
    cache: bool = Field(
        False,
        description="Keep on disk what the teacher says of every training sequence, and ask it only once. "
        "Text is then cut at the same places in every epoch.",
    )
    cache_dir: str | None = Field(
        None,
        description="Folder of the cache, for several runs; by default in the run folder, until the run is "
        "finished. ablate and sweep share one by themselves.",
    )
    retention_every: Positive = Field(20, description="Every so many steps one batch is retention text.")
    retention_batch_size: Positive | None = Field(
        None, description="Sequences in a batch of retention text; by default as many as in the others."
    )
    retention_updates: Literal["mask", "all"] = Field(
        "mask",
        description="What retention text trains: the mask only, or also the memory that is attached.",
    )

    @property
    def cacheable(self) -> bool:
        """Whether the loss needs no more of the teacher than its most likely tokens."""
        loss = plugins.load(plugins.LOSSES, self.loss, "distill.loss")
        return loss.num_targets is not None or not loss.needs_teacher

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
