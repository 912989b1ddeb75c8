"""The plugin for vLLM: every request runs at its own length factor, the plain model within L.

    pip install --no-deps longwave            # beside vLLM
    longwave export MODEL --profiles 1,2,4,8 --output OUT
    python -m vllm.entrypoints.openai.api_server --model OUT

vLLM calls `register` in each of its processes. A model without profiles runs as it did before.

How it works: each rotary module has a table of cos and sin, one row for each position. The plugin appends rows for each
t > 1. A request at t gets the row numbers p + start(t) in the place of its positions p, for the model alone. The cache
and the attention keep the positions.

    hooks.py       what is put in the place of functions of vLLM, and the check that they are those that we know
    checks.py      what cannot be served, at the start
    configs.py     what vLLM's configs say
    choice.py      which t a request gets
    tables.py      rows of cos and sin in vLLM's rotary modules; queries scaled by log-n
    foreign.py     rows of cos and sin in rotary modules of transformers
    runner.py      row numbers in the place of positions: model runner V2
    runner_v1.py   the same for model runner V1
    banding.py     attention by bands for requests beyond L, where the folder has bands
    caches.py      how keys and values lie in the cache of a backend
    band_checks.py what attention by bands cannot serve, at the start
"""

from __future__ import annotations


def register() -> None:
    """Put the hooks in their places. vLLM finds this function by the entry point `vllm.general_plugins`."""
    from longwave.serving.vllm.hooks import install

    install()
