"""`KoffModel`: one backbone in memory, any number of memories, one of them (or none) for each prompt."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from ..artefact.bundle import Bundle, open_bundle
from ..artefact.check import require_sound_bundle
from ..errors import UsageError
from ..model.pooling import pooled_features
from ..router import Features, Router, load_router
from .backbone import Backbone, Memory
from .generation import NEW_TOKENS, decode_completions
from .loading import load_backbone
from .merge import merged_model
from .prompts import Prompt, Prompts, read_prompts
from .routing import MemoryRouter
from .saving import save_export

PROBE_BATCH_SIZE = 16  # prompts whose hidden states a probe router reads at once


class KoffModel(Backbone):
    """A backbone with memories; make one with `from_pretrained`.

    Several threads may call it at once, each with its own memories.

    Attributes:
        model: the transformers model, bare outside `attached`.
        tokenizer: the backbone's tokenizer.
        store: its memories.
    """

    def __init__(self, model: Any, tokenizer: Any, digest: str, path: Path, *budgets: int | None) -> None:
        super().__init__(model, digest, path, *budgets)
        self.tokenizer = tokenizer
        self._texts = RLock()  # a fast tokenizer stores the padding and truncation of a call in itself
        self._router = MemoryRouter(path)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        memories: Sequence[str | Path] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        verify: bool = False,
        memory_budget: int | None = None,
        host_memory_budget: int | None = None,
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
            memory_budget: most bytes that memories take on the device: each is loaded when a call first needs
                it, and the least recently used ones make room. Those that running calls use stay, even where
                they are more. None: all are loaded now, and stay.
            host_memory_budget: most bytes of memories' files to keep in the CPU's memory, so that those which
                come back to an accelerator (or in another type than their files') are not read from disk.
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
        parts = (backbone.model, backbone.tokenizer, backbone.digest, backbone.folder)
        loaded = cls(*parts, memory_budget, host_memory_budget)
        if backbone.router is not None:
            loaded._take_router(load_router(backbone.router), backbone.router)
        for bundle in backbone.bundles:
            loaded._take_memory(bundle)
        return loaded

    def _take_router(self, router: Router, folder: Path) -> None:
        self._router.take(router, folder, len(self._widths), self.config.hidden_size, self._features)

    def _features(self, layer: int, max_tokens: int) -> Features:
        hidden = partial(self._hidden, layer=layer)
        size, device = int(self.config.vocab_size), self.device
        return pooled_features(hidden, self.tokenizer, max_tokens, PROBE_BATCH_SIZE, device, vocab_size=size)

    def load_memory(self, bundle: Bundle | str | Path, *, replace: bool = False) -> str:
        """Load one more memory; returns its domain.

        Args:
            bundle: a bundle, or its folder.
            replace: it takes the place of the memory of that domain; calls that are running keep the old one.

        Raises:
            IntegrityError: it belongs to another backbone, or does not fit this one.
            UsageError: a memory of that domain is loaded already.
        """
        bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        require_sound_bundle(bundle)
        return self._take_memory(bundle, replace=replace)

    def unload_memory(self, domain: str) -> None:
        """Forget a memory; calls that are running keep it.

        Raises:
            UsageError: it is not loaded.
        """
        self.store.remove(domain)
        self._memory = None if self._memory == domain else self._memory
        self._router.remove(domain)

    def _take_memory(self, bundle: Bundle, *, replace: bool = False) -> str:
        """`load_memory` of files that have been checked."""
        bundle.require_backbone(self._digest, self._path)
        self.store.add(bundle, replace=replace)
        self._router.add(bundle)
        return bundle.domain

    def merge(self, domain: str, *, without_kv: bool = False) -> Any:
        """Backbone and one memory as one transformers model, without any cost of a memory.

        LoRA is folded into a copy of the weights, and restored neurons come after the MLP's own. It can be
        saved with `save_pretrained`.

        Args:
            domain: the memory.
            without_kv: leave its KV memory out, which is no part of any weight.

        Raises:
            UsageError: it is not loaded, or has a KV memory and `without_kv` is not set.
        """
        with self.store.use([domain]) as (memory,):
            assert memory is not None
            return merged_model(self.model, memory, without_kv=without_kv)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write an export that `from_pretrained` reads back: backbone, router, and the memories of now.

        Memories that were unloaded are not in it, those that were loaded from elsewhere are, and its manifest
        lists what is there.

        The files are copied as they were loaded, whatever device and type the model has now. Everything is
        read and checked again before the folder appears, whole or not at all.

        Args:
            folder: a new or empty folder.

        Raises:
            UsageError: there is something at `folder`; the backbone was not loaded from an export; or its
                weights were changed since.
            IntegrityError: a file that is to be copied has changed.
            ResourceError: the disk is too full.
        """
        save_export(self.model, self._digest, self._path, self.store.bundles, Path(folder))

    @property
    def has_router(self) -> bool:
        """Whether `route` can choose."""
        return self._router.is_there

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
        with self._texts:
            return self._router.route(prompts, self.domains)

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompts | None = None,
        memory: Memory = "attached",
        max_new_tokens: int | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        chat: bool = False,
        **options: Any,
    ) -> Any:
        """Complete prompts, each with its own memory, in one batch.

        Args:
            prompts: a text, a conversation (a list of `{"role": ..., "content": ...}`), or a list of either.
            memory: see `rows`, or "auto" (the router decides); by default the memory attached with `attach`
                or `attached`.
            max_new_tokens: the most tokens to add to a prompt; None: 64, or as the options say.
            input_ids: [B, T], instead of `prompts`.
            attention_mask: [B, T], of `input_ids`, 0 = padding, on the left.
            chat: each text is what a user says; it goes through the tokenizer's chat template.
            options: passed to `generate` of transformers, for example `generation_config`, `do_sample`,
                `num_return_sequences`, `stop_strings` or `streamer`; decoding is greedy unless they say
                otherwise.

        Returns:
            The text that comes after each prompt, a list also for one prompt (`complete` gives a text for a
            text), each prompt `num_return_sequences` times. For `input_ids`, or with
            `return_dict_in_generate`, what transformers returns, ids of prompts included.

        Raises:
            UsageError: a memory is not loaded, "auto" without a router, or the model cannot read a prompt.
        """
        with self._texts:
            read = read_prompts(self.tokenizer, self.config, prompts, input_ids, attention_mask, chat=chat)
        if not read.count:
            return []
        names = [name for name, _ in self.route(read.texts(self.tokenizer))] if memory == "auto" else memory
        settings = self._settings(options, max_new_tokens, read.padding)
        with self.attached(self.rows(names, read.count)):
            found = self.model.generate(**read.batch(self.device), **settings)
        if input_ids is not None or not isinstance(found, Tensor):
            return found
        with self._texts:
            return decode_completions(self.tokenizer, found, read.width)

    def complete(
        self,
        prompt: Prompt,
        memory: str | None = "attached",
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> str:
        """Complete one prompt: a text in, a text out.

        Args:
            prompt: a text, or a conversation.
            memory, max_new_tokens: see `generate`.
            options: see `generate`.

        Returns:
            The text that comes after the prompt.

        Raises:
            UsageError: see `generate`; or the options ask for more than one text, or for another form.
        """
        found = self.generate([prompt], memory, max_new_tokens, **options)
        if not isinstance(found, list) or len(found) != 1:
            raise UsageError("complete: it gives one text; for several sequences, or ids, call generate.")
        return str(found[0])

    def _settings(self, options: dict[str, Any], max_new_tokens: int | None, padding: int) -> dict[str, Any]:
        """What `generate` of transformers is told: the user's options, and what they leave open."""
        given = options.get("generation_config")
        settings: dict[str, Any] = {"do_sample": False, "pad_token_id": padding} if given is None else {}
        if max_new_tokens is not None:
            settings["max_new_tokens"] = max_new_tokens
        elif given is None and not {"max_length", "max_time"} & options.keys():
            settings["max_new_tokens"] = NEW_TOKENS
        settings |= {"tokenizer": self.tokenizer} if "stop_strings" in options else {}
        settings |= options
        if given is None:
            return settings
        config = copy.deepcopy(settings.pop("generation_config"))
        if config.pad_token_id is None:
            config.pad_token_id = padding
        rest = config.update(**settings)  # transformers wants all of them in the config, or none
        return {"generation_config": config, **rest}
