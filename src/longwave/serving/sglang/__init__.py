"""The plugin for SGLang: every request runs at its own length factor, the plain model within L.

    pip install --no-deps longwave            # beside SGLang
    longwave export MODEL --profiles 1,2,4,8 --output OUT
    python -m sglang.launch_server --model-path OUT

SGLang calls `register` in each of its processes. A model without profiles runs as it did before. Requests get row
numbers in the place of positions, as in `longwave.serving.vllm`.

    hooks.py     what is put around functions of SGLang, by its registry, and the check that they are those we know
    checks.py    what cannot be served, at the start
    choice.py    which t a request gets
    tables.py    rows of cos and sin in SGLang's rotary modules; row numbers in the place of positions
"""

from __future__ import annotations


def register() -> None:
    """Put the hooks in their places. SGLang finds this function by the entry point `sglang.srt.plugins`."""
    from longwave.serving.sglang.hooks import install

    install()
