"""Model runner V2: the model gets row numbers in the place of positions. vLLM does the same for M-RoPE."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from longwave.serving.marks import PROFILE
from longwave.serving.vllm.banding import put_on
from longwave.serving.vllm.configs import draft_tokens, profiles_of
from longwave.serving.vllm.tables import extend_tables


def profile_of(sampling_params: Any) -> int:
    """The number of a request's profile. Requests that vLLM makes up to warm up have none: they run at t = 1."""
    extra = None if sampling_params is None else sampling_params.extra_args
    return int((extra or {}).get(PROFILE, 0))


@cache
def state_class(kind: Any) -> Any:
    """A `ModelState` class of vLLM that hands row numbers to the model."""

    class ProfiledState(kind):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
            super().__init__(vllm_config, model, encoder_cache, device)
            profiles, padding = profiles_of(vllm_config.model_config), draft_tokens(vllm_config)
            assert profiles is not None
            self._starts = extend_tables(model, profiles, padding)
            self._bands = put_on(model, profiles, padding)
            self._numbers = [0] * self.max_num_reqs  # of the profile, by the place of a request
            self._own_starts = torch.zeros(self.max_num_reqs, dtype=torch.int64)
            self._device_starts = self._own_starts.to(device)
            self._changed = False
            self._rows = torch.zeros(self.max_num_tokens, dtype=torch.int64, device=device)  # graphs capture it

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            number = self._numbers[req_index] = profile_of(new_req_data.sampling_params)
            self._own_starts[req_index] = self._starts[number]
            self._changed = True

        def apply_staged_writes(self) -> None:
            super().apply_staged_writes()
            if self._changed:
                self._device_starts.copy_(self._own_starts)
                self._changed = False

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
            inputs = super().prepare_inputs(input_batch, req_states)
            tokens, padded = input_batch.num_tokens, input_batch.num_tokens_after_padding
            count = input_batch.num_reqs
            if self._bands is not None:  # until the next forward
                self._bands.begin([self._numbers[place] for place in input_batch.idx_mapping_np[:count].tolist()])
            ends = input_batch.query_start_loc[: count + 1]
            starts = self._device_starts[input_batch.idx_mapping[:count]]
            starts = starts.repeat_interleave((ends[1:] - ends[:-1]).long(), output_size=tokens)
            torch.add(input_batch.positions[:tokens], starts, out=self._rows[:tokens])
            self._rows[tokens:padded].zero_()
            return {**inputs, "positions": self._rows[:padded]}

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
            if self._bands is not None:
                self._bands.begin(())
            return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "positions": self._rows[:num_tokens]}

    ProfiledState.__name__ = ProfiledState.__qualname__ = f"Profiled{kind.__name__}"
    return ProfiledState
