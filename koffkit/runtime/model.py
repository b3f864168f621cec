"""`KoffModel`: one backbone in memory, any number of memories, one of them (or none) for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.check import require_sound_bundle
from ..checkpoint.spec import ModelSpec
from ..errors import UsageError, did_you_mean
from ..model.bundles import MemoryTensors, load_memory, state_of_call
from ..model.kv_attention import use_koffkit_attention
from ..model.lora_rows import RowAdapters
from ..model.neuron_memory import use_neuron_memory
from ..model.per_call import for_this_call
from ..model.pooling import pooled_features
from ..router import Features, Router, load_router
from ..router.column import with_column
from .generation import decode_completions, encode_prompts, one_for_each, positions_of
from .loading import attach_adapter, load_backbone

PROBE_BATCH_SIZE = 16  # prompts whose hidden states a probe router reads at once
Memory = str | Sequence[str | None] | None


class KoffModel:
    """A backbone with memories; make one with `from_pretrained`.

    Several threads may call it at once, each with its own memories. Load all memories before you share it.

    Attributes:
        model: the transformers model (wrapped by peft once a memory with LoRA is loaded).
        tokenizer: the backbone's tokenizer.
        domains: names of the memories loaded.
    """

    def __init__(self, model: Any, tokenizer: Any, digest: str, path: Path) -> None:
        use_koffkit_attention(model)
        use_neuron_memory(model)
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self._plain, self._digest, self._path = model, digest, path
        self._widths = ModelSpec(config=model.config.to_dict(), path=path).widths
        self._slots: dict[str, str | None] = {}
        self._memories: dict[str, MemoryTensors] = {}
        self._adapters = RowAdapters()
        self._texts = RLock()  # a fast tokenizer stores the padding and truncation of a call in itself
        self._attached: str | None = None
        self._router: Router | None = None
        self._router_folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        memories: Sequence[str | Path] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        verify: bool = False,
        **options: Any,
    ) -> KoffModel:
        """Load an export, or a backbone folder and bundles.

        Every file is compared with what manifest and bundles list before anything is loaded. The weights of
        an export's backbone are compared by size, header and 64 samples of 1 KiB each, so that a change
        elsewhere in them is not seen unless `verify` is set; of everything else, every byte is read.

        Args:
            path: an export (all its memories are loaded unless `memories` names some), or a backbone folder.
            memories: bundle folders; for an export, domain names work too.
            device: for example `cuda`; None: the CPU, or where the option `device_map` puts the model.
            dtype: dtype of the weights, for example `bfloat16`; None: as they are stored.
            verify: read every byte of the backbone's weights, too.
            options: passed to `AutoModelForCausalLM.from_pretrained`, for example `device_map`. Code in the
                folder never runs unless `trust_remote_code=True` is among them.

        Returns:
            The model, with its router if the export has one, and no memory attached.

        Raises:
            UsageError: there is no export or backbone at `path`, or no such memory, or an option asks for
                attention without KV memories.
            IntegrityError: a file is missing, has changed or is listed nowhere; a memory belongs to another
                backbone, or does not fit this one.
            ResourceError: there is no such device.
        """
        backbone = load_backbone(Path(path), memories, device, dtype, options, verify=verify)
        loaded = cls(backbone.model, backbone.tokenizer, backbone.digest, backbone.folder)
        if backbone.router is not None:
            loaded._take_router(load_router(backbone.router), backbone.router)
        for bundle in backbone.bundles:
            loaded._take_memory(bundle)
        return loaded

    def _take_router(self, router: Router, folder: Path) -> None:
        router.require_backbone(len(self._widths), self._plain.config.hidden_size)
        router.read_backbone(self._features)
        self._router, self._router_folder = router, folder

    def _features(self, layer: int, max_tokens: int) -> Features:
        hidden = partial(self._hidden, layer=layer)
        size, device = int(self._plain.config.vocab_size), self.device
        return pooled_features(hidden, self.tokenizer, max_tokens, PROBE_BATCH_SIZE, device, vocab_size=size)

    def _hidden(self, input_ids: Tensor, layer: int) -> Tensor:
        """Hidden states [B, T, D] of the bare backbone after `layer` layers."""
        with self._with([None] * len(input_ids)):
            hidden_states: Tensor = self._plain(
                input_ids=input_ids, use_cache=False, output_hidden_states=True
            ).hidden_states[layer]
        return hidden_states

    @property
    def domains(self) -> list[str]:
        """Names of the loaded memories, in the order they were loaded."""
        return list(self._slots)

    @property
    def device(self) -> torch.device:
        """The device that token ids must be on."""
        device: torch.device = self._plain.device
        return device

    def load_memory(self, bundle: Bundle | str | Path) -> str:
        """Load one more memory; returns its domain.

        Args:
            bundle: a bundle, or its folder.

        Raises:
            IntegrityError: it belongs to another backbone, or does not fit this one.
            UsageError: a memory of that domain is loaded already.
        """
        bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        require_sound_bundle(bundle)
        return self._take_memory(bundle)

    def _take_memory(self, bundle: Bundle) -> str:
        """`load_memory` of files that have been checked."""
        bundle.require_backbone(self._digest, self._path)
        if bundle.domain in self._slots:
            raise UsageError(f"{bundle.path}: a memory {bundle.domain!r} is loaded already.")
        hidden = self._plain.config.hidden_size
        memory = load_memory(bundle, self._widths, hidden, adapter=False)
        self._memories[bundle.domain] = memory.to(self.device)
        slot = None if bundle.adapter_file is None else f"m{len(self._slots)}"
        if slot is not None:
            self.model = attach_adapter(self.model, bundle, slot)
            self._adapters.take(self._plain)
        self._slots[bundle.domain] = slot
        if self._router is not None and self._router_folder is not None:
            self._router = with_column(self._router, bundle, self._router_folder)
        return bundle.domain

    def attach(self, domain: str) -> None:
        """Make `domain` the memory of calls that do not name one.

        Raises:
            UsageError: it is not loaded.
        """
        self._attached = self._known(domain)

    def detach(self) -> None:
        """Return to the bare backbone."""
        self._attached = None

    @property
    def attached(self) -> str | None:
        """The domain of the attached memory; None: the bare backbone."""
        return self._attached

    def route(self, prompts: Sequence[str]) -> list[tuple[str | None, float]]:
        """Choose a memory for each prompt.

        Args:
            prompts: texts.

        Returns:
            For each prompt the most likely domain among the loaded memories, None if it fits none, and the
            probability of that choice.

        Raises:
            UsageError: this export has no router.
        """
        if self._router is None:
            raise UsageError(
                f"{self._path}: there is no router (stage route was not in the recipe); name the memory: one "
                f"of {', '.join(self.domains) or 'none'}, or None."
            )
        with self._texts:
            return self._router.route(prompts, allowed=self.domains)

    def rows(self, memory: Memory, count: int) -> list[str | None]:
        """The memory of each of `count` prompts; None = bare backbone.

        Args:
            memory: one name for all, a list of names (None = bare backbone), None, or "attached".
            count: number of prompts.

        Raises:
            UsageError: a memory is not loaded, or there are more or fewer names than prompts.
        """
        names = one_for_each(self._attached if memory == "attached" else memory, count)
        return [None if name is None else self._known(name) for name in names]

    def _known(self, domain: str) -> str:
        if domain not in self._slots:
            raise UsageError(
                f"memory {domain!r}: not loaded; there is {', '.join(self.domains) or 'none'}."
                f"{did_you_mean(domain, self.domains)}"
            )
        return domain

    @contextmanager
    def _with(self, rows: Sequence[str | None]) -> Iterator[None]:
        """Give each row its memory, in the calls of this thread until the block ends."""
        adapters = self._adapters.state(
            [None if name is None else self._slots[name] for name in rows], self._plain.device
        )
        with for_this_call({**adapters, **state_of_call(self._plain, self._memories, rows)}):
            yield

    @torch.no_grad()
    def logits(
        self,
        input_ids: Tensor,
        memory: Memory = "attached",
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        """Compute logits.

        Args:
            input_ids: [B, T], on `device`.
            memory: see `rows`.
            attention_mask: [B, T], 0 = padding, on either side; None = no padding.
            position_ids: [B, T], of texts that are packed into rows without padding: where they restart at 0,
                another text begins, which sees its memory and nothing before it. None = one text a row.

        Returns:
            [B, T, V].

        Raises:
            UsageError: the shape of the mask is not that of the ids, or a memory is not loaded.
        """
        positions = positions_of(attention_mask, input_ids) if position_ids is None else position_ids
        with self._with(self.rows(memory, input_ids.shape[0])):
            output: Tensor = self._plain(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
            ).logits
        return output

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        memory: Memory = "attached",
        max_new_tokens: int = 64,
        *,
        chat: bool = False,
        **options: Any,
    ) -> list[str]:
        """Complete prompts, each with its own memory, in one batch; what is returned does not repeat them.

        Args:
            prompts: one or several.
            memory: see `rows`, or "auto" (the router decides); by default the memory attached with `attach`.
            max_new_tokens: the most tokens to add to a prompt.
            chat: each prompt is what a user says; it goes through the tokenizer's chat template.
            options: passed to `generate` of transformers; decoding is greedy unless they say otherwise.

        Raises:
            UsageError: a memory is not loaded, "auto" without a router, or the model cannot read a prompt.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return []
        names = [name for name, _ in self.route(prompts)] if memory == "auto" else memory
        rows = self.rows(names, len(prompts))
        with self._texts:
            batch, padding = encode_prompts(
                self.tokenizer, prompts, self._plain.config, chat=chat, device=self._plain.device
            )
        settings = {"do_sample": False, "pad_token_id": padding} | options
        with self._with(rows):
            ids = self._plain.generate(**batch, max_new_tokens=max_new_tokens, **settings)
        with self._texts:
            return decode_completions(self.tokenizer, ids, batch["input_ids"].shape[1])
