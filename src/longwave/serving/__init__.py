"""Serving: every request at its own length factor.

profiles.py    which t a folder can be served at, and which one a request gets; without torch
vllm/          the plugin for vLLM
"""
