"""Sizes that a `config.json` omits because they are the defaults of its class, as in the text part of a
multimodal Gemma 3: they must mean here what they mean in transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..arch import architecture, supported
from ..errors import UsageError

SIZES = ("vocab_size", "num_attention_heads", "num_key_value_heads")
"""Sizes that real files omit; a file without depth and widths is damaged rather than brief."""


def with_default_sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config with the sizes that its class in transformers fills in; torch is imported only if one is
    missing.

    Args:
        path: of the file, for messages.

    Raises:
        UsageError: transformers does not accept the config.
    """
    model_type = config.get("model_type")
    if model_type not in supported():
        return dict(config)  # refused later, with a list of the supported families
    arch = architecture(str(model_type))
    left_out = [key for key in SIZES if key not in config]
    if arch.sets_head_dim and config.get("head_dim") is None:
        left_out.append("head_dim")
    if not left_out:
        return dict(config)
    from transformers import CONFIG_MAPPING

    try:
        whole = CONFIG_MAPPING[arch.model_type].from_dict(dict(config)).to_dict()
    except Exception as error:  # every config class raises errors of its own
        reason = str(error).strip().splitlines()
        raise UsageError(
            f"{path}: {', '.join(left_out)} left out, and transformers cannot fill in the rest "
            f"({type(error).__name__}: {reason[-1].strip() if reason else ''}); complete the file."
        ) from None
    return dict(config) | {key: whole[key] for key in left_out}
