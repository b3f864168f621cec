"""Errors of the system and of libraries as one line with a remedy."""

from __future__ import annotations

import errno

from ..errors import IntegrityError, KoffkitError, ResourceError

OUT_OF_MEMORY = (
    "out of memory; lower batch_size, sequence_length or distill.chunk_tokens, or set "
    "train.gradient_checkpointing: true; "
    "compress and memory add go on with --resume from its last checkpoint."
)
RESUME = "compress and memory add go on with --resume."
REMEDIES = {
    errno.ENOSPC: f"free some space, or choose another --output; {RESUME}",
    errno.EDQUOT: f"free some of your quota, or choose another --output; {RESUME}",
    errno.EFBIG: f"the file system or a limit (ulimit -f) allows no larger file; {RESUME}",
    errno.EIO: f"the disk failed; check it, or choose another --output; {RESUME}",
    errno.ENAMETOOLONG: "give a shorter name or path.",
    errno.ELOOP: "links lead in a circle; give the folder itself.",
    errno.EMFILE: "raise the limit of open files (ulimit -n).",
    errno.ENOTDIR: "a file stands where a folder is needed; give another path.",
    errno.EISDIR: "a folder stands where a file is needed; give another path.",
    errno.ENOENT: "it was removed or moved in the meantime; check the path.",
    errno.EACCES: "change its permissions, or choose another --output.",
    errno.EPERM: "change its permissions, or choose another --output.",
}


def as_koffkit_error(error: BaseException) -> KoffkitError | None:
    """The error to show for a failure of the system or of a library; None: it is a bug of koffkit."""
    if isinstance(error, MemoryError):
        return ResourceError(OUT_OF_MEMORY)
    if isinstance(error, RecursionError):
        return IntegrityError("a file is nested too deeply to be read; `koffkit verify` may say which.")
    if isinstance(error, OSError):
        where = error.filename or error.filename2 or "input or output"
        where = where.decode(errors="replace") if isinstance(where, bytes) else where
        remedy = REMEDIES.get(error.errno or 0, "choose another --output.")
        return ResourceError(f"{where}: {error.strerror or error}; {remedy}")
    kind, text = type(error).__name__, str(error)  # recognised without importing the libraries
    if isinstance(error, RuntimeError) and (kind == "OutOfMemoryError" or "can't allocate memory" in text):
        return ResourceError(OUT_OF_MEMORY)
    if kind == "SafetensorError":
        if "I/O error" in text or "os error" in text:
            return ResourceError(f"a safetensors file: {text}; free some space, or check the disk; {RESUME}")
        return IntegrityError(f"a safetensors file is damaged ({text}); `koffkit verify` says which.")
    return None
