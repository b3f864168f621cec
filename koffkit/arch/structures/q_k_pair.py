"""A rotary pair with a gate at the queries and one at the keys, for the paper's ablation with gates on q, k
and v: the pair goes when either is shut.

The paper gates every query channel of every head by itself. Here the query heads that read one KV head share
the gates of their pairs: a key channel that one head no longer reads must stay for the others, so that alone
it could be masked but not cut out.
"""

from __future__ import annotations

from dataclasses import replace

from ..patterns import kv_pair
from ..spec import Cut
from .qk_pair import QUERIES
from .qk_pair import STRUCTURE as PAIR

STRUCTURE = replace(
    PAIR,
    name="q_k_pair",
    paper_gates=(QUERIES, Cut(module="self_attn.k_proj", side="out", pattern=kv_pair)),
    paper_position=None,
)
