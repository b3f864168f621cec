"""An encoder fine-tuned to tell domains apart, as in the paper (RoBERTa there, any sequence classifier of transformers here)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import write_json
from .base import CONFIG, FORMAT, Array, Router, read_config, unreadable

FOLDER = "encoder"
"""Beside our own `config.json`: a stock checkpoint with its tokenizer."""


class EncoderRouter(Router):
    """Args: model: a sequence classifier with a class for each label. max_tokens: of a text that count."""

    kind = "encoder"

    def __init__(self, labels: Sequence[str], model: Any, tokenizer: Any, max_tokens: int, min_confidence: float = 0.0) -> None:
        super().__init__(labels, min_confidence)
        self.model, self.tokenizer, self.max_tokens = model, tokenizer, max_tokens

    def probabilities(self, texts: Sequence[str]) -> Array:
        import torch

        self.model.eval()
        with torch.no_grad():
            found: Array = self.logits(texts).float().softmax(-1).cpu().numpy()
        return found

    def logits(self, texts: Sequence[str]) -> Any:
        """[N, C], differentiable."""
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens)
        return self.model(**batch.to(self.model.device)).logits

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder / FOLDER)
        self.tokenizer.save_pretrained(folder / FOLDER)
        write_json(folder / CONFIG, {"koffkit": FORMAT, **self.describe()})

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"max_tokens": self.max_tokens, "encoder": self.model.config.model_type}

    @classmethod
    def load(cls, folder: Path) -> EncoderRouter:
        """Raises:
        IntegrityError: a file is missing or damaged.
        """
        from safetensors import SafetensorError
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        config = read_config(folder)
        try:
            if not (folder / FOLDER / "config.json").is_file():  # else transformers would ask the hub for a model of this name
                raise FileNotFoundError(f"no {FOLDER}/config.json")
            model = AutoModelForSequenceClassification.from_pretrained(folder / FOLDER, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder / FOLDER)
            return cls(config["labels"], model, tokenizer, int(config["max_tokens"]), float(config["min_confidence"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise unreadable(folder, error) from None


def find_encoder(name: str, root: Path) -> str:
    """A local folder (relative to the recipe, else the working folder), or the folder a hub model was fetched to.

    Raises:
        DataError: it is nowhere to be found.
    """
    for folder in (root / name, Path(name)):
        if (folder / "config.json").is_file():
            return str(folder.resolve())
    where = "stages.route.encoder"
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"{where}: no encoder in {name!r}, looked for in {root} and {Path.cwd()}; a folder with config.json, or a hub id.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return str(snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{where}: {name!r} is no local folder and the hub did not give it: {reason} Use kind: ngrams, or a folder."
        ) from None


def fit_encoder(
    texts: Mapping[str, Sequence[str]], path: str, *, epochs: int, rate: float, batch_size: int, max_tokens: int,
    min_confidence: float, seed: int, device: Any, beginning: Callable[[str, random.Random], str],
) -> EncoderRouter:  # fmt: skip
    """Fine-tune all of an encoder's weights.

    Args:
        path: a checkpoint folder; its classifier is made anew. beginning: cuts a training text short, since prompts are beginnings.

    Raises:
        DataError: the checkpoint does not load as a sequence classifier from safetensors.
    """
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = tuple(texts)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=len(labels), use_safetensors=True, ignore_mismatched_sizes=True, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"stages.route.encoder: {path} does not load as a text classifier with safetensors weights: {reason}") from None
    router = EncoderRouter(labels, model.to(device), tokenizer, max_tokens, min_confidence)
    documents = [(text, index) for index, label in enumerate(labels) for text in texts[label]]
    share = torch.tensor([len(documents) / (len(labels) * max(1, len(texts[label]))) for label in labels], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    draw = random.Random(seed)
    model.eval()  # no dropout: short runs, and the result depends on the seed alone
    for _ in range(epochs):
        draw.shuffle(documents)
        for start in range(0, len(documents), batch_size):
            part = documents[start : start + batch_size]
            logits = router.logits([beginning(text, draw) for text, _ in part])
            loss = F.cross_entropy(logits.float(), torch.tensor([index for _, index in part], device=device), weight=share)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return router
