"""The settings of a training run. The help of `longwave train` is made from this file: no torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from longwave.settings import REQUIRED, Settings, setting

POSITIONS = ("chunks", "random", "uniform", "none")
FACTORS = ("log-uniform", "integer", "fixed")
LOG_N_COUNTS = ("keys", "positions")
# Arguments of `longwave.extend` that are no options of a method: training sets them from settings of its own.
RESERVED = ("model", "method", "max_factor", "schedule", "prior", "log_n", "beyond", "original_length", "trajectory")
PRECISIONS = ("auto", "bf16", "fp32")

# Settings that may change when a run is resumed: they alter nothing that was drawn or computed before.
RESUMABLE = {"lr", "field_lr", "max_grad_norm", "save_every", "keep_checkpoints", "workers"}

of_length, of_method, of_optimisation, of_sampling, of_running = (
    partial(setting, group=group) for group in ("Length", "Method", "Optimisation", "Sampling", "Running")
)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """What a run depends on besides the model and the data. Build it with `TrainConfig.create`.

    Raises:
        ValueError: naming the setting, what it got and what it allows.
    """

    noun: ClassVar[str] = "training setting"

    train_length: int = of_length(REQUIRED, "Tokens of a training window, n.", least=2)
    max_factor: float = of_length(
        REQUIRED, "Largest length factor the model is to serve: 16 is 16 x the original.", least=1
    )
    original_length: int | None = of_length(None, "Pre-trained context length L; read from the model.", least=2)
    train_factor: float | None = of_length(None, "Largest factor drawn in training; --max-factor.", least=1)

    method: str = of_method("clex", "METHOD[@SCHEDULE], see `longwave methods`.")
    prior: str | None = of_method(None, "Closed form that CLEX starts from: ntk, yarn, linear.")
    log_n: float | None = of_method(None, "Exponent of the per-query log-n attention scaling, 0 for off; the method's.")
    options: Mapping[str, Any] = of_method((), "Further option of the method, KEY=VALUE (JSON); repeatable.")

    steps: int = of_optimisation(1000, "Optimizer steps.", least=1)
    batch_size: int = of_optimisation(8, "Windows per micro-batch and process; they share one factor t.", least=1)
    accumulation: int = of_optimisation(1, "Micro-batches per optimizer step.", least=1)
    lr: float = of_optimisation(2e-5, "Learning rate of the model, cosine to zero.", least=0)
    field_lr: float = of_optimisation(5e-3, "Learning rate of the learned frequencies, same schedule.", least=0)
    warmup: float = of_optimisation(0.03, "Share of the steps with rising learning rate.", least=0, most=1)
    weight_decay: float = of_optimisation(0.0, "On the model's matrices; never on the frequencies.", least=0)
    max_grad_norm: float = of_optimisation(1.0, "Gradient clipping, weights and frequencies each; 0: off.", least=0)
    freeze_weights: bool = of_optimisation(False, "Train the learned frequencies only.")
    seed: int = of_optimisation(0, "Seed of every random draw.", least=0)

    positions: str = of_sampling("chunks", "Positions of a window's tokens in [0, tL).", choices=POSITIONS)
    chunks: int = of_sampling(4, "Contiguous chunks of a window, for --positions chunks.", least=1)
    factors: str = of_sampling("log-uniform", "How t is drawn from [1, train factor].", choices=FACTORS)
    log_n_count: str = of_sampling(
        "keys", "What log-n counts in training: the keys a query sees, or its position.", choices=LOG_N_COUNTS
    )
    short_share: float = of_sampling(
        0.0, "Share of micro-batches without gaps, at the smallest t for the window.", least=0, most=1
    )
    long_share: float = of_sampling(
        0.0,
        "Share of micro-batches with real windows of m n tokens, m a divisor of the batch size; costs memory.",
        least=0, most=1,
    )  # fmt: skip

    precision: str = of_running("auto", "bf16 is autocast over fp32 weights; auto: bf16 on GPUs.", choices=PRECISIONS)
    gradient_checkpointing: bool = of_running(False, "Recompute activations: less memory, slower.")
    workers: int = of_running(0, "Data loading processes.", least=0)
    save_every: int = of_running(0, "Steps between checkpoints; a tenth of the run if 0.", least=0)
    keep_checkpoints: bool = of_running(False, "Keep the last two checkpoints when the run is done.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        super().__post_init__()
        if reserved := sorted(set(self.options) & set(RESERVED)):
            raise ValueError(
                f"{reserved[0]} is no option of a method. If training lets you choose it, it is a setting of its own: "
                "see `longwave train --help`."
            )
        if self.short_share + self.long_share > 1:
            raise ValueError(f"long share must be at most 1 together with short share, got {self.long_share!r}.")
        if self.positions == "chunks" and self.chunks > self.train_length:
            raise ValueError(f"chunks must be at most the train length, {self.train_length}, got {self.chunks!r}.")

    @classmethod
    def create(cls, **given: Any) -> TrainConfig:
        """Defaults, then the method's recipe, then what is `given` (None counts as not given)."""
        for needed in ("train_length", "max_factor"):
            if given.get(needed) is None:
                raise ValueError(f"training needs {needed.replace('_', ' ')}: pass {needed}=...")
        from longwave.extensions.spec import parse_spec  # needs torch

        given = {name: value for name, value in given.items() if value is not None}
        recipe = parse_spec(given.get("method", "clex")).method.recipe
        return super().create(**(dict(recipe) | given))

    @property
    def largest_draw(self) -> float:
        """The largest t that training draws."""
        return self.train_factor or self.max_factor

    @property
    def checkpoint_steps(self) -> int:
        return self.save_every or max(1, self.steps // 10)

    @property
    def method_options(self) -> dict[str, Any]:
        """Keyword arguments for `extend` beyond the method, its factor and its schedule."""
        from longwave.extensions.spec import parse_spec  # needs torch

        options = parse_spec(self.method).joined(self.options)
        chosen = {"prior": self.prior, "log_n": self.log_n, "original_length": self.original_length}
        return {**options, **{name: value for name, value in chosen.items() if value is not None}}

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Settings that differ from a recorded run in a way that would make it another run."""
        mine = json.loads(json.dumps(self.as_dict()))  # as a record holds them: a tuple is a list there
        return [
            f"{name} {recorded.get(name)!r} -> {value!r}"
            for name, value in mine.items()
            if name not in RESUMABLE and recorded.get(name) != value
        ]
