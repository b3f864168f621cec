"""koffkit's model classes for layout `ragged` and for heads that have lost parts.

`import koffkit.sliced` registers them with `AutoModelForCausalLM.from_pretrained`, so no remote code is
needed.
"""

from __future__ import annotations

from pathlib import Path

from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from .. import plugins
from . import modeling_koffkit
from .modeling_koffkit import PREFIX, classes

CODE = Path(modeling_koffkit.__file__)
"""The file that ships in checkpoints, so that software without koffkit can load them
(`trust_remote_code=True`)."""


def register(family: str) -> None:
    """Register one family with transformers' Auto classes; importing this module registers all."""
    config_class, model_class = classes(family)
    AutoConfig.register(PREFIX + family, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


__all__ = ["CODE", "PREFIX", "classes", "register"]

for _family in plugins.names(plugins.ARCHITECTURES):
    if _family in CONFIG_MAPPING:  # the installed transformers may be older than an architecture
        register(_family)
