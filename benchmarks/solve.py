"""Forward and backward of the frequencies at t = 16, against the published solver. One thread, ratios.

    python benchmarks/solve.py [--repeats 20] [--json solve.json]

The published layer integrates with RK4 at dt = 0.01, 6,000 evaluations to t = 16, all of them
back-propagated. longwave integrates the same field's residual in ln(2t - 1), and its own field in
ln t, with 12 and 10 steps. Weights: an official layer's (d = 128, λ = 2), from tests/golden.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint

from longwave.files import write_json
from longwave.methods.clex import CLEX, clex_paper
from longwave.provenance import versions
from longwave.rope import Rope

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
DIM, FACTOR = 128, 16.0


class Published(torch.nn.Module):
    """The published layer, written from its equations: dz/dt by torchdiffeq's RK4 at dt = 0.01."""

    def __init__(self, rope: Rope, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Parameter(up.clone()), torch.nn.Parameter(down.clone())
        self.start = rope.log_freq.to(up.dtype)
        self.index = torch.arange(rope.rotary_dim // 2, dtype=up.dtype)

    def rate(self, t: Tensor, z: Tensor) -> Tensor:
        d, i = 2 * self.index.numel(), self.index
        ntk = -2 * i / d * math.log(1e4) - 2 * i / (d - 2) * (2 * t - 1).log()
        return torch.nn.functional.silu((z + ntk) @ self.up) @ self.down - 4 * i / ((d - 2) * (2 * t - 1))

    def inv_freq(self, t: float, **solver: object) -> Tensor:
        solver = solver or {"method": "rk4", "options": {"step_size": 0.01}}
        return odeint(self.rate, self.start, torch.tensor([1.0, t], dtype=self.start.dtype), **solver)[-1].exp()


def seconds(inv_freq: Callable[[float], Tensor]) -> float:
    started = time.perf_counter()
    inv_freq(FACTOR).log().sum().backward()
    return time.perf_counter() - started


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float(((value.detach().double() - exact) / exact).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="timings of ours; the published solver runs 3 times")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)

    meta = json.loads((GOLDEN / "clex_official.json").read_text())["silu_d128_f2"]
    arrays = np.load(GOLDEN / "clex_official.npz")
    up, down = (torch.from_numpy(arrays[f"silu_d128_f2/{name}"]) for name in ("up", "down"))
    rope = Rope(1 / meta["base"] ** (torch.arange(0, DIM, 2).float() / DIM), meta["original_length"], meta["base"])

    paper = clex_paper(rope, FACTOR, amplification=meta["param_factor"], activation=meta["activation"])
    with torch.no_grad():
        paper.field.up_proj.copy_(up)
        paper.field.down_proj.copy_(down)
    torch.manual_seed(0)
    ours = CLEX(rope, FACTOR, amplification=2)
    torch.nn.init.normal_(ours.field.down_proj, std=0.5)  # moves ln θ by 1.6 at most, as trained fields do

    tight = {"method": "dopri5", "rtol": 1e-10, "atol": 1e-10}
    with torch.no_grad():
        exact_paper = Published(rope, up.double(), down.double()).inv_freq(FACTOR, **tight)
        exact_ours = exact_bounded(ours, tight)
    published = Published(rope, up, down)
    seconds(paper.inv_freq), seconds(ours.inv_freq)  # warm-up

    times: dict[str, list[float]] = {"published": [], "clex-paper": [], "clex": []}
    for _ in range(3):  # interleaved, so that a slow moment of the machine hits all three
        times["published"].append(seconds(published.inv_freq))
        for _ in range(max(1, args.repeats // 3)):
            times["clex-paper"].append(seconds(paper.inv_freq))
            times["clex"].append(seconds(ours.inv_freq))
    median = {name: statistics.median(values) for name, values in times.items()}
    errors = {
        "published": relative_error(published.inv_freq(FACTOR), exact_paper),
        "clex-paper": relative_error(paper.inv_freq(FACTOR), exact_paper),
        "clex": relative_error(ours.inv_freq(FACTOR), exact_ours),
    }
    print(f"{'solver':<12}{'forward + backward':>20}{'times faster':>14}{'max relative error':>20}")
    for name, value in median.items():
        print(f"{name:<12}{value * 1e3:>17.1f} ms{median['published'] / value:>14.0f}{errors[name]:>20.1e}")
    if args.json:
        rows = {
            name: {"seconds": median[name], "speedup": median["published"] / median[name], "error": errors[name]}
            for name in median
        }
        write_json(args.json, {"benchmark": "solve", "threads": 1, "versions": versions(), "rows": rows})


def exact_bounded(trajectory: CLEX, solver: dict[str, object]) -> Tensor:
    """The bounded field integrated whole, in ln t and float64: an independent route to z(16)."""
    prior, field = trajectory.prior, trajectory.field
    rate_up_to_16 = ((prior.log_freq_1 - prior.log_freq(16.0)) / math.log(16.0)).clamp(0.01, 0.99)

    def rate(u: Tensor, z: Tensor) -> Tensor:
        t = u.exp()
        moved = (z - trajectory.log_freq_1) @ field.up_proj.double()
        hidden = field.activation(moved + u * field.time_proj.double() + field.up_bias.double())
        push = hidden @ field.down_proj.double() + field.down_bias.double()
        return -(-t * prior.rate(t) + torch.sigmoid(torch.logit(rate_up_to_16) + push) - rate_up_to_16)

    ends = torch.tensor([0.0, math.log(FACTOR)], dtype=torch.float64)
    return odeint(rate, trajectory.log_freq_1, ends, **solver)[-1].exp()


if __name__ == "__main__":
    main()
