"""The same numbers as transformers wherever transformers has the method."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longwave.methods import METHODS
from longwave.rope import Rope

DIM, LENGTH = 64, 4096
LONG = torch.linspace(1.0, 12.0, DIM // 2).tolist()
SHORT = torch.linspace(1.0, 1.3, DIM // 2).tolist()

YARN_BETAS = {"beta_fast": 8, "beta_slow": 2}
TABLES = {"long_factor": LONG, "short_factor": [1.0] * (DIM // 2)}

# method, options of ours, rope parameters of transformers, t, sequence length handed to transformers
CASES = [
    ("linear", {}, {"rope_type": "linear", "factor": 8.0}, 8.0, None),
    ("ntk", {"slope": 1}, {"rope_type": "dynamic", "factor": 1.0}, 4.0, 4 * LENGTH),
    ("ntk", {}, {"rope_type": "dynamic", "factor": 2.0}, 6.5, 6.5 * LENGTH),
    ("yarn", {}, {"rope_type": "yarn", "factor": 16.0}, 16.0, None),
    ("yarn", {"truncate": False}, {"rope_type": "yarn", "factor": 3.0, "truncate": False}, 3.0, None),
    ("yarn", YARN_BETAS, {"rope_type": "yarn", "factor": 4.0, **YARN_BETAS}, 4.0, None),
    ("llama3", {}, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 8.0, None),
    ("longrope", TABLES, {"rope_type": "longrope", "factor": 16.0, **TABLES}, 16.0, 2 * LENGTH),
    ("none", {}, {"rope_type": "linear", "factor": 1.0}, 5.0, None),
]


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 200.0])
@pytest.mark.parametrize(("name", "options", "parameters", "t", "length"), CASES)
def test_inverse_frequencies_and_attention_scaling(name, options, parameters, t, length, base):
    parameters = {"rope_theta": base, "original_max_position_embeddings": LENGTH} | parameters
    config = LlamaConfig(head_dim=DIM, max_position_embeddings=LENGTH, rope_parameters=parameters)
    expected, scaling = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    rope = Rope(1 / base ** (torch.arange(0, DIM, 2).float() / DIM), LENGTH, base)
    trajectory = METHODS[name].build(rope, 16.0, **options)
    torch.testing.assert_close(trajectory.inv_freq(t).float(), expected.float(), rtol=1e-6, atol=0)
    assert math.isclose(trajectory.attention_scaling(t), scaling, rel_tol=1e-6)


def test_longrope_starts_from_the_short_factors_that_the_model_already_has():
    unscaled = 1 / 10_000 ** (torch.arange(0, DIM, 2).double() / DIM)
    rope = Rope(unscaled / torch.tensor(SHORT, dtype=torch.float64), LENGTH, 10_000.0)
    trajectory = METHODS["longrope"].build(rope, 16.0, long_factor=LONG, short_factor=SHORT)
    torch.testing.assert_close(trajectory.inv_freq(16.0), unscaled / torch.tensor(LONG, dtype=torch.float64))
    torch.testing.assert_close(trajectory.inv_freq(1.0), rope.inv_freq)
