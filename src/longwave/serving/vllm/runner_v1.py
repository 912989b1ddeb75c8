"""Model runner V1: positions become row numbers for the time of a forward, in place: graphs have captured them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.serving.vllm.configs import draft_tokens, profiles_of
from longwave.serving.vllm.runner import start_of
from longwave.serving.vllm.tables import MARK, extend_tables


def prepare(runner: Any) -> None:
    """Extend the tables of the model that a runner has loaded."""
    config = runner.vllm_config
    profiles = profiles_of(config.model_config)
    if profiles is not None:
        runner.longwave_starts = extend_tables(runner.get_model(), profiles, draft_tokens(config))


@contextmanager
def rows(runner: Any, positions: Tensor | None) -> Iterator[None]:
    """Positions of the scheduled tokens are row numbers inside."""
    starts = getattr(runner, MARK, None)
    if starts is None and profiles_of(runner.vllm_config.model_config) is not None:
        raise RuntimeError("a model with rope profiles has no rows for them: its worker was loaded without the plugin")
    added = None if starts is None or positions is None else _added(runner, starts)
    if added is None or positions is None:
        yield
        return
    part = positions[: added.shape[0]]
    own = added.to(positions.device, positions.dtype, non_blocking=True)
    part.add_(own)
    try:
        yield
    finally:
        part.sub_(own)


def _added(runner: Any, starts: list[int]) -> Tensor | None:
    """The first row of each token's request; None where all are 0."""
    batch = runner.input_batch
    own = [start_of(runner.requests[request].sampling_params, starts) for request in batch.req_ids]
    if not any(own):
        return None
    ends = np.asarray(runner.query_start_loc.np[: len(own) + 1])
    return torch.from_numpy(np.repeat(np.asarray(own, dtype=np.int64), np.diff(ends)))
