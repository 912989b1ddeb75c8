"""Attention methods: which keys a query sees, at which distance, and how sharply.

bands.py        `Band` and `Attention`: what a method says
placement.py    where the queries and keys of a forward stand in every band
engine.py       one softmax over all bands: tiles, kernels, merge; and its dense twin
kernels.py      attention that returns its log-sum-exp; decode with grouped queries
layout.py       which dimensions of a head are turned
rows.py         methods that run row by row and remember
selection.py    methods that choose keys: a chunk of queries, its near band and its list
dot.py          scores of all keys for a selection; gpu_dot.py is the same on a GPU
documents.py    several documents in a row: a token sees its own alone
temperature.py  how sharp the softmax is: log-n
hook.py         the one function that transformers calls
layers.py       what a model's attention layers hand to that function

To add a method: a file here with its class, and a line in ATTENTIONS.
"""

from __future__ import annotations

from longwave.attention.bands import Attention, Band
from longwave.attention.dca import DualChunkAttention
from longwave.attention.infllm import InfLLM
from longwave.attention.ms_poe import MsPoE
from longwave.attention.quest import Quest
from longwave.attention.rerope import LeakyReRoPE, ReRoPE
from longwave.attention.self_extend import SelfExtend
from longwave.attention.streaming import LMInfinite, StreamingLLM
from longwave.attention.string import String
from longwave.attention.token_select import TokenSelect
from longwave.attention.two_band import TwoBand
from longwave.names import look_up

__all__ = ["ATTENTIONS", "Attention", "Band", "get_attention"]

ATTENTIONS: dict[str, type[Attention]] = {
    method.name: method
    for method in (
        TwoBand,
        LeakyReRoPE,
        ReRoPE,
        SelfExtend,
        DualChunkAttention,
        String,
        StreamingLLM,
        LMInfinite,
        InfLLM,
        TokenSelect,
        Quest,
        MsPoE,
    )
}


def get_attention(name: str) -> type[Attention]:
    """Look an attention method up; an unknown name is a `ValueError` that offers the nearest one."""
    return look_up("attention method", name, ATTENTIONS)
