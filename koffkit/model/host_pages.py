"""Files of memories in the CPU's memory, for memories that are needed on an accelerator again and again."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from torch import Tensor

from .flat_file import FlatFile, Identity


class HostPages:
    """What was read, as long as there is room; several threads may use it.

    Args:
        budget: most bytes to keep.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._kept: OrderedDict[Identity, Tensor] = OrderedDict()  # the least recently used first
        self._lock = Lock()

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        with self._lock:
            return sum(data.nbytes for data in self._kept.values())

    def read(self, file: FlatFile) -> Tensor:
        """The bytes of a file's tensors, which nobody may write to.

        Raises:
            IntegrityError: the file cannot be read.
        """
        identity = file.identity
        with self._lock:
            if identity in self._kept:
                self._kept.move_to_end(identity)
                return self._kept[identity]
        data = file.read()
        with self._lock:
            for other in [other for other in self._kept if other.path == identity.path]:
                del self._kept[other]  # of the file before it was replaced
            self._kept[identity] = data
            total = sum(kept.nbytes for kept in self._kept.values())
            while total > self._budget:
                total -= self._kept.popitem(last=False)[1].nbytes
        return data
