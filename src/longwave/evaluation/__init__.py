"""Measurements of a model against its context length."""
