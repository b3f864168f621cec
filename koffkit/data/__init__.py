"""Text in, packed token sequences out: streamed, split by document, deterministic."""
