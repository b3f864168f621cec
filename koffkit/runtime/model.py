"""`KoffModel`: one backbone in memory, any number of memories, one of them (or none) for each prompt."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from .. import sliced  # noqa: F401  # the Auto classes know its models from here on
from ..artefact.bundle import Bundle, open_bundle
from ..artefact.check import require_sound, require_sound_bundle
from ..artefact.digests import backbone_digest
from ..artefact.export import is_export, open_export
from ..artefact.names import ADAPTER_CONFIG, BACKBONE
from ..checkpoint.files import load_tokenizer
from ..checkpoint.spec import ModelSpec
from ..devices import find_device, parse_dtype
from ..errors import IntegrityError, UsageError, did_you_mean
from ..model.bundles import KVTensors, adapter_config, load_adapter, load_kv, mixed_kv
from ..model.kv_attention import NAME, KVMemory, kv_of_call, use_koffkit_attention
from ..model.lora_rows import RowAdapters
from ..model.per_call import for_this_call
from ..model.pooling import pooled_features
from ..router import Features, Router, load_router
from ..router.column import with_column

AT_ONCE = 16  # prompts that a probe reads together
Memory = str | Sequence[str | None] | None


class KoffModel:
    """A backbone with memories. Make one with `from_pretrained`.

    Threads may call it at the same time, each with its own memories. Load all memories before you share it.

    Attributes:
        model: the transformers model (wrapped by peft once a memory with LoRA is loaded).
        tokenizer: the backbone's tokenizer.
        domains: names of the memories loaded.
    """

    def __init__(self, model: Any, tokenizer: Any, digest: str, path: Path) -> None:
        use_koffkit_attention(model)
        self.model: Any = model.eval()
        self.tokenizer = tokenizer
        self._plain, self._digest, self._path = model, digest, path
        self._widths = ModelSpec(config=model.config.to_dict(), path=path).widths
        self._slots: dict[str, str | None] = {}
        self._kv: dict[str, KVTensors] = {}
        self._adapters = RowAdapters()
        self._texts = RLock()  # a fast tokenizer keeps padding and truncation of the call in itself
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
            memories: bundle folders; for an export, domain names also do.
            device: where the model runs, for example `cuda` or `cpu`; None: the CPU, or where the option
                `device_map` puts it.
            dtype: of the weights, for example `bfloat16`; None: as they are stored.
            verify: read every byte of the backbone's weights, too.
            options: for `AutoModelForCausalLM.from_pretrained`, for example `device_map`. Code in the folder
                never runs unless `trust_remote_code=True` is among them.

        Raises:
            UsageError: there is no export or backbone at `path`, or no such memory, or an option asks for
                attention without KV memories.
            IntegrityError: a file is missing, has changed or is listed nowhere; a memory belongs to another
                backbone, or does not fit this one.
            ResourceError: there is no such device.
        """
        from transformers import AutoModelForCausalLM

        _require_attention(options)
        place = None if device is None else find_device(device)
        kind = parse_dtype(dtype)
        path = Path(path)
        export = open_export(path) if is_export(path) else None
        folder = path / BACKBONE if export is not None else path
        if not (folder / "config.json").is_file():
            raise UsageError(f"{path}: neither an export (koffkit.json) nor a backbone folder (config.json).")
        if export is not None:
            require_sound(export, whole=verify)
        bundles = _bundles(export.bundles() if export is not None else [], memories)
        digest = backbone_digest(folder) if export is None else export.backbone_digest
        for bundle in bundles:
            bundle.require_backbone(digest, folder)
        options = {"trust_remote_code": False} | options
        model = AutoModelForCausalLM.from_pretrained(
            folder, **options, **({} if kind is None else {"dtype": kind})
        )
        if place is not None:
            model.to(place)
        tokenizer = load_tokenizer(folder, trust_remote_code=bool(options["trust_remote_code"]))
        loaded = cls(model, tokenizer, digest, folder)
        if export is not None and export.router is not None:
            loaded._take_router(load_router(export.router), export.router)
        for bundle in bundles:
            loaded._take_memory(bundle)
        return loaded

    def _take_router(self, router: Router, folder: Path) -> None:
        router.require_backbone(len(self._widths), self._plain.config.hidden_size)
        router.read_backbone(self._features)
        self._router, self._router_folder = router, folder

    def _features(self, layer: int, max_tokens: int) -> Features:
        hidden = partial(self._hidden, layer=layer)
        return pooled_features(hidden, self.tokenizer, max_tokens, AT_ONCE, self._plain.device)

    def _hidden(self, input_ids: Tensor, layer: int) -> Tensor:
        """Hidden states of the bare backbone."""
        with self._with([None] * len(input_ids)):
            found: Tensor = self._plain(
                input_ids=input_ids, use_cache=False, output_hidden_states=True
            ).hidden_states[layer]
        return found

    @property
    def domains(self) -> list[str]:
        return list(self._slots)

    @property
    def device(self) -> torch.device:
        """Where token ids must be."""
        device: torch.device = self._plain.device
        return device

    def load_memory(self, bundle: Bundle | str | Path) -> str:
        """Load one more memory; returns its domain.

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
        device = self._plain.device
        kv = load_kv(bundle, self._widths)
        self._kv[bundle.domain] = {i: KVMemory(m.key.to(device), m.value.to(device)) for i, m in kv.items()}
        slot = f"m{len(self._slots)}" if bundle.adapter_file is not None else None
        if slot is not None:
            self._load_adapter(bundle, slot)
        self._slots[bundle.domain] = slot
        if self._router is not None and self._router_folder is not None:
            self._router = with_column(self._router, bundle, self._router_folder)
        return bundle.domain

    def _load_adapter(self, bundle: Bundle, slot: str) -> None:
        """Not with peft's own `load_adapter`: it knows no packed weights, and opens more than safetensors."""
        from peft import get_peft_model, set_peft_model_state_dict

        config = adapter_config(bundle)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            if self.model is self._plain:
                self.model = get_peft_model(self._plain, config, adapter_name=slot).eval()
            else:
                self.model.add_adapter(slot, config)
                self.model.eval()  # what is added begins in training mode: with dropout, if it has any
        self._adapters.take(self._plain)
        found = set_peft_model_state_dict(self.model, load_adapter(bundle), adapter_name=slot)
        missing = [name for name in found.missing_keys if f".{slot}." in name]
        if missing or found.unexpected_keys:
            wrong = (
                f"has {found.unexpected_keys[0]}, which"
                if found.unexpected_keys
                else f"lacks {missing[0]}, which"
            )
            raise IntegrityError(
                f"{bundle.adapter_file}: {wrong} does not go with {bundle.path / ADAPTER_CONFIG}; copy the "
                "bundle again."
            )

    def attach(self, domain: str) -> None:
        """Make `domain` the memory of calls that do not name one."""
        self._attached = self._known(domain)

    def detach(self) -> None:
        """Back to the bare backbone for calls that do not name a memory."""
        self._attached = None

    @property
    def attached(self) -> str | None:
        return self._attached

    def route(self, prompts: Sequence[str]) -> list[tuple[str | None, float]]:
        """The most likely domain of each prompt among the loaded memories, with its probability; None = it
        fits no domain.

        Raises:
            UsageError: this export has no router.
        """
        if self._router is None:
            raise UsageError(
                f"{self._path}: there is no router (stage route was not in the recipe); name the memory: one "
                "of "
                f"{', '.join(self.domains) or 'none'}, or None."
            )
        with self._texts:
            return self._router.route(prompts, allowed=self.domains)

    def rows(self, memory: Memory, count: int) -> list[str | None]:
        """The memory of each of `count` prompts.

        Args:
            memory: one name for all, a list of names (None = bare backbone), None, or "attached".
        """
        if memory == "attached":
            return [self._attached] * count
        if memory is None or isinstance(memory, str):
            if memory == "auto":
                raise UsageError(
                    'memory "auto": the router needs the prompts; call `route` with them, or `generate`.'
                )
            return [None if memory is None else self._known(memory)] * count
        if len(memory) != count:
            raise UsageError(
                f"memory: {len(memory)} names for {count} prompts; give one name for each, or a single one."
            )
        return [None if name is None else self._known(name) for name in memory]

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
        with for_this_call({**adapters, **kv_of_call(self._plain, mixed_kv(self._kv, rows))}):
            yield

    @torch.no_grad()
    def logits(
        self, input_ids: Tensor, memory: Memory = "attached", attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] of token ids [B, T].

        Args:
            memory: see `rows`.
            attention_mask: [B, T], 0 = padding, on either side; None = no padding.

        Raises:
            UsageError: the mask has another shape than the ids.
        """
        positions = None
        if attention_mask is not None:
            if attention_mask.shape != input_ids.shape:
                raise UsageError(
                    f"attention_mask: shape {list(attention_mask.shape)}; it must be that of input_ids, "
                    f"{list(input_ids.shape)}."
                )
            # Memory keys are not rotated, so the text must start at position 0, whatever padding comes before
            # it.
            positions = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
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
        **options: Any,
    ) -> list[str]:
        """Complete prompts, each with its own memory, in one batch.

        Args:
            prompts: one or several.
            memory: see `rows`, or "auto" (the router decides); by default the memory attached with `attach`.
            options: for `generate` of transformers; greedy decoding unless you say otherwise.

        Returns:
            The completions, without the prompts.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            return []
        rows = self.rows(
            [name for name, _ in self.route(prompts)] if memory == "auto" else memory, len(prompts)
        )
        with self._texts:
            if self.tokenizer.pad_token_id is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            batch = self.tokenizer(
                prompts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False
            )
        padding = self._known_tokens(batch)
        batch = batch.to(self._plain.device)
        settings = {"do_sample": False, "pad_token_id": padding} | options
        with self._with(rows):
            ids = self._plain.generate(**batch, max_new_tokens=max_new_tokens, **settings)
        with self._texts:
            texts: list[str] = self.tokenizer.batch_decode(
                ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
        return texts

    def _known_tokens(self, batch: Any) -> int | None:
        """The token to pad with. One that was added to the tokenizer alone has no embedding; what stands in
        padding is masked, so any other does.

        Raises:
            UsageError: a prompt has a token that the model has no embedding of.
        """
        size = int(self._plain.config.vocab_size)
        padding: int | None = self.tokenizer.pad_token_id
        if padding is not None and padding >= size:
            end = self.tokenizer.eos_token_id
            padding = end if end is not None and end < size else 0
            batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, padding)
        largest = int(batch["input_ids"].max()) if batch["input_ids"].numel() else 0
        if largest >= size:
            name = self.tokenizer.convert_ids_to_tokens(largest)
            raise UsageError(
                f"--prompt: token {largest} ({name!r}) is beyond the model's embedding (vocab_size {size}); "
                "take it out of the prompt."
            )
        return padding


def _require_attention(options: Mapping[str, Any]) -> None:
    """Refuse attention other than ours, which is stock `sdpa` wherever there is no KV memory."""
    found = options.get("attn_implementation") or getattr(options.get("config"), "_attn_implementation", None)
    if found not in (None, "sdpa", NAME):
        raise UsageError(
            f"attn_implementation {found!r}: KV memories need koffkit's attention, which computes as sdpa "
            "does; leave the option out or "
            'say "sdpa". For other attention load the backbone folder with transformers, without KV memories.'
        )


def _bundles(shipped: list[Bundle], wanted: Sequence[str | Path] | None) -> list[Bundle]:
    """The bundles asked for: by domain among those shipped, or by folder; the latter are checked here."""
    if wanted is None:
        return shipped
    by_domain = {bundle.domain: bundle for bundle in shipped}
    bundles = []
    for name in wanted:
        bundle = by_domain.get(str(name))
        if bundle is None:
            bundle = open_bundle(name)
            require_sound_bundle(bundle)
        bundles.append(bundle)
    return bundles
