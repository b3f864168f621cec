"""An encoder fine-tuned to tell domains apart, as in the paper (RoBERTa there, any sequence classifier of
transformers here)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ..checkpoint.files import CHECKPOINT_PATTERNS, checkpoint_files
from ..checkpoint.vocabulary import require_known
from ..errors import DataError, KoffkitError
from ..hub import download
from ..storage.files import write_json
from ..storage.publish import whole_folder
from ..strict import Positive, Rate, StrictModel
from .base import CONFIG, FORMAT, Array, Router, Setting, read_config, unreadable
from .training import class_weights, labelled, minimise, random_prefix

if TYPE_CHECKING:
    from torch import Tensor

WHERE = "stages.route.encoder"
FOLDER = "encoder"
"""Beside our own `config.json`: a stock checkpoint with its tokenizer."""


class Options(StrictModel):
    encoder: str = Field(
        "FacebookAI/roberta-base", description="Of kind encoder: a local folder or a hub id."
    )
    lr: Rate = Field(2e-5, description="Of kind encoder: its learning rate.")
    epochs: Positive = Field(4, description="Passes over the documents.")
    batch_size: Positive = Field(16, description="Of kinds encoder and probe: documents at a time.")
    max_tokens: Positive = Field(256, description="Of kinds encoder and probe: tokens of a text that count.")


class EncoderRouter(Router):
    """A fine-tuned sequence classifier.

    Args:
        model: the classifier, with a class for each label.
        max_tokens: tokens of a text that are read.
    """

    kind = "encoder"
    options = Options

    def __init__(
        self, labels: Sequence[str], model: Any, tokenizer: Any, max_tokens: int, min_confidence: float = 0.0
    ) -> None:
        super().__init__(labels, min_confidence)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def probabilities(self, texts: Sequence[str]) -> Array:
        import torch

        self.model.eval()
        with torch.no_grad():
            probabilities: Array = self.logits(texts).float().softmax(-1).cpu().numpy()
        return probabilities

    def logits(self, texts: Sequence[str]) -> Any:
        """[N, C], differentiable."""
        batch = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens
        )
        size = self.model.get_input_embeddings().num_embeddings
        for text, ids in zip(texts, batch["input_ids"].tolist(), strict=True):
            require_known(ids, size, self.tokenizer, f"the router's text {text[:40]!r} (its encoder)")
        return self.model(**batch.to(self.model.device)).logits

    def save(self, folder: Path) -> None:
        with whole_folder(folder / FOLDER) as partial:
            self.model.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"max_tokens": self.max_tokens, "encoder": self.model.config.model_type}

    @classmethod
    def load(cls, folder: Path) -> EncoderRouter:
        """Read what `save` wrote.

        Raises:
            IntegrityError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        config = read_config(folder)
        try:
            if not (
                folder / FOLDER / "config.json"
            ).is_file():  # else transformers would look on the hub for a model of this name
                raise FileNotFoundError(f"no {FOLDER}/config.json")
            model = AutoModelForSequenceClassification.from_pretrained(
                folder / FOLDER, use_safetensors=True, trust_remote_code=False
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / FOLDER, trust_remote_code=False)
            return cls(
                config["labels"], model, tokenizer, int(config["max_tokens"]), float(config["min_confidence"])
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise unreadable(folder, error) from None

    @classmethod
    def check(cls, options: Any, setting: Setting) -> None:
        open_encoder(find_encoder(options.encoder, setting.root), 2, options.max_tokens)

    @classmethod
    def fit(cls, texts: Mapping[str, Sequence[str]], options: Any, setting: Setting) -> EncoderRouter:
        return fit_encoder(
            texts,
            find_encoder(options.encoder, setting.root),
            epochs=options.epochs,
            rate=options.lr,
            batch_size=options.batch_size,
            max_tokens=options.max_tokens,
            min_confidence=options.min_confidence,
            seed=setting.seed,
            device=setting.device,
            check_interrupt=setting.check_interrupt,
        )


def find_encoder(name: str, root: Path) -> Path:
    """Find an encoder: in a local folder (relative to the recipe, else to the working folder) or on the hub.

    Args:
        name: local folder, or hub id.
        root: where relative folders are looked for first.

    Returns:
        The encoder's local folder.

    Raises:
        DataError: there is no such encoder, or it has no safetensors weights.
    """
    folder = _locate(name, root)
    try:
        checkpoint_files(folder)
    except KoffkitError as error:
        raise DataError(f"{WHERE}: {error}") from None
    return folder


def _locate(name: str, root: Path) -> Path:
    for folder in (root / name, Path(name)):
        if (folder / "config.json").is_file():
            return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(
            f"{WHERE}: no encoder in {name!r}, looked for in {root} and {Path.cwd()}; name a folder "
            "with config.json, or a hub id."
        )
    return download(name, CHECKPOINT_PATTERNS, where=WHERE, remedy="Name a folder, or use kind: ngrams.")


def open_encoder(folder: Path, num_labels: int, max_tokens: int) -> tuple[Any, Any]:
    """Load an encoder with a new classifier, and its tokenizer.

    Args:
        folder: a checkpoint.
        num_labels: classes of the new classifier.
        max_tokens: tokens of a text that it must be able to read.

    Raises:
        DataError: it does not load, reads fewer than `max_tokens` tokens, or lacks weights, which
            transformers would fill in at random.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    arguments = {
        "use_safetensors": True,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
        "output_loading_info": True,
        "trust_remote_code": False,
    }
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, **arguments
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{WHERE}: {folder} does not load as a text classifier: {reason}") from None
    body = f"{model.base_model_prefix}."
    lost = sorted(name for name in loading["missing_keys"] if name.startswith(body) and "pooler" not in name)
    if lost:
        raise DataError(
            f"{WHERE}: {folder} lacks {len(lost)} tensors of the encoder ({lost[0]}, ...); download it again."
        )
    limit = min(getattr(model.config, "max_position_embeddings", max_tokens), tokenizer.model_max_length)
    if max_tokens > limit:
        raise DataError(
            f"stages.route.max_tokens: {max_tokens}, but {folder} reads at most {limit} tokens; lower it."
        )
    return model, tokenizer


def fit_encoder(
    texts: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    epochs: int,
    rate: float,
    batch_size: int,
    max_tokens: int,
    min_confidence: float,
    seed: int,
    device: Any,
    check_interrupt: Callable[[], None] = lambda: None,
) -> EncoderRouter:
    """Fine-tune all of an encoder's weights.

    Args:
        folder: a checkpoint, which gets a new classifier.
        max_tokens: tokens of a document that are read.
        seed: of the classifier and of the order of the documents.

    Raises:
        DataError: the checkpoint does not load completely.
    """
    import torch
    from torch.nn import functional as F

    labels = tuple(texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenizer = open_encoder(folder, len(labels), max_tokens)
    router = EncoderRouter(labels, model.to(device), tokenizer, max_tokens, min_confidence)
    weights, rng = class_weights(texts).to(device), random.Random(seed)

    def loss_of(batch: list[tuple[str, int]]) -> Tensor:
        logits = router.logits([random_prefix(text, rng) for text, _ in batch]).float()
        indices = torch.tensor([index for _, index in batch], device=device)
        return F.cross_entropy(logits, indices, weight=weights)

    model.eval()  # no dropout: short runs, and the result depends on the seed alone
    minimise(
        torch.optim.AdamW(model.parameters(), lr=rate),
        labelled(texts),
        loss_of,
        epochs=epochs,
        batch_size=batch_size,
        rng=rng,
        check_interrupt=check_interrupt,
        max_norm=1.0,
    )
    return router
