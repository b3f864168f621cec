"""Fitting the router: multinomial logistic regression on whole documents and on their beginnings, because
prompts are beginnings."""

from __future__ import annotations

import random

BATCH = 64
LEAST_WORDS = 3


def beginning(text: str, draw: random.Random) -> str:
    """A text, every second time cut short."""
    words = text.split(" ")
    if len(words) <= LEAST_WORDS or draw.random() < 0.5:
        return text
    return " ".join(words[: draw.randint(LEAST_WORDS, len(words))])
