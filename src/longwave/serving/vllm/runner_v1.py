"""Model runner V1: positions become row numbers for the time of a forward, in place: graphs have captured them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.serving.vllm.banding import BATCH, put_on
from longwave.serving.vllm.configs import draft_tokens, profiles_of
from longwave.serving.vllm.runner import profile_of
from longwave.serving.vllm.tables import MARK, extend_tables


def prepare(runner: Any) -> None:
    """Extend the tables of the model that a runner has loaded, and put on its bands."""
    config = runner.vllm_config
    profiles = profiles_of(config.model_config)
    if profiles is not None:
        model, padding = runner.get_model(), draft_tokens(config)
        setattr(runner, MARK, extend_tables(model, profiles, padding))
        setattr(runner, BATCH, put_on(model, profiles, padding))


@contextmanager
def rows(runner: Any, positions: Tensor | None) -> Iterator[None]:
    """Positions of the scheduled tokens are row numbers inside."""
    starts = getattr(runner, MARK, None)
    if starts is None and profiles_of(runner.vllm_config.model_config) is not None:
        raise RuntimeError("a model with rope profiles has no rows for them: its worker was loaded without the plugin")
    if starts is None:
        yield
        return
    numbers = [profile_of(runner.requests[request].sampling_params) for request in runner.input_batch.req_ids]
    bands = getattr(runner, BATCH)
    with nullcontext() if bands is None else bands.running(numbers), _added(runner, positions, starts, numbers):
        yield


@contextmanager
def _added(runner: Any, positions: Tensor | None, starts: list[int], numbers: list[int]) -> Iterator[None]:
    """The first row of each token's request is added to its position inside."""
    own = [starts[number] for number in numbers]
    if positions is None or not any(own):
        yield
        return
    ends = np.asarray(runner.query_start_loc.np[: len(own) + 1])
    rows = torch.from_numpy(np.repeat(np.asarray(own, dtype=np.int64), np.diff(ends)))
    part, added = positions[: rows.shape[0]], rows.to(positions.device, positions.dtype, non_blocking=True)
    part.add_(added)
    try:
        yield
    finally:
        part.sub_(added)
