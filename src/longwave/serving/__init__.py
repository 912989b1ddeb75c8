"""Serving: each request at its own length factor, in vLLM or by a small server of our own.

`profiles` and `vllm/` are for vLLM; the other files are the server behind `longwave serve`.
"""
