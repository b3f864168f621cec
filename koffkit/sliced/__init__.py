"""koffkit's model classes for layout `ragged` and for heads of which parts are gone.

`import koffkit.sliced` makes `AutoModelForCausalLM.from_pretrained` know them, without remote code.
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
    """Tell the Auto classes of transformers about one family; importing this module does it for all."""
    config_class, model_class = classes(family)
    AutoConfig.register(PREFIX + family, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)


__all__ = ["CODE", "PREFIX", "classes", "register"]

for _family in plugins.names(plugins.ARCHITECTURES):
    if _family in CONFIG_MAPPING:  # an architecture may be newer than the transformers that is installed
        register(_family)
