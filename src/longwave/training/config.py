"""The settings of a training run. The help of `longwave train` is made from this file: no torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

POSITIONS = ("chunks", "random", "uniform", "none")
FACTORS = ("log-uniform", "integer", "fixed")
LOG_N_COUNTS = ("keys", "positions")
# Arguments of `longwave.extend` that are no options of a method: training sets them from settings of its own.
RESERVED = ("model", "method", "max_factor", "schedule", "prior", "log_n", "beyond", "original_length", "trajectory")
PRECISIONS = ("auto", "bf16", "fp32")

# Settings that may change when a run is resumed: they alter nothing that was drawn or computed before.
RESUMABLE = {"lr", "field_lr", "max_grad_norm", "save_every", "keep_checkpoints", "workers"}


def setting(default: Any, text: str, group: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its help text, its group on the help page and its allowed values."""
    return field(default=default, metadata={"help": text, "group": group, "choices": choices})


@dataclass(frozen=True)
class TrainConfig:
    """What a run depends on besides the model and the data. Build it with `TrainConfig.create`.

    Raises:
        ValueError: naming the setting, what it got and what it allows.
    """

    train_length: int = setting(0, "Tokens of a training window, n.", "Length")
    max_factor: float = setting(0.0, "Largest length factor the model is to serve: 16 is 16 x the original.", "Length")
    original_length: int | None = setting(None, "Pre-trained context length L; read from the model.", "Length")
    train_factor: float | None = setting(None, "Largest factor drawn in training; --max-factor.", "Length")

    method: str = setting("clex", "METHOD[@SCHEDULE], see `longwave methods`.", "Method")
    prior: str | None = setting(None, "Closed form that CLEX starts from: ntk, yarn, linear.", "Method")
    log_n: float | None = setting(
        None, "Exponent of the per-query log-n attention scaling, 0 for off; the method's.", "Method"
    )
    options: Mapping[str, Any] = setting((), "Further option of the method, KEY=VALUE (JSON); repeatable.", "Method")

    steps: int = setting(1000, "Optimizer steps.", "Optimisation")
    batch_size: int = setting(8, "Windows per micro-batch and process; they share one factor t.", "Optimisation")
    accumulation: int = setting(1, "Micro-batches per optimizer step.", "Optimisation")
    lr: float = setting(2e-5, "Learning rate of the model, cosine to zero.", "Optimisation")
    field_lr: float = setting(5e-3, "Learning rate of the learned frequencies, same schedule.", "Optimisation")
    warmup: float = setting(0.03, "Share of the steps with rising learning rate.", "Optimisation")
    weight_decay: float = setting(0.0, "On the model's matrices; never on the frequencies.", "Optimisation")
    max_grad_norm: float = setting(1.0, "Gradient clipping, weights and frequencies each; 0: off.", "Optimisation")
    freeze_weights: bool = setting(False, "Train the learned frequencies only.", "Optimisation")
    seed: int = setting(0, "Seed of every random draw.", "Optimisation")

    positions: str = setting("chunks", "Positions of a window's tokens in [0, tL).", "Sampling", POSITIONS)
    chunks: int = setting(4, "Contiguous chunks of a window, for --positions chunks.", "Sampling")
    factors: str = setting("log-uniform", "How t is drawn from [1, train factor].", "Sampling", FACTORS)
    log_n_count: str = setting(
        "keys", "What log-n counts in training: the keys a query sees, or its position.", "Sampling", LOG_N_COUNTS
    )
    short_share: float = setting(0.0, "Share of micro-batches at t = 1 without gaps.", "Sampling")

    long_share: float = setting(
        0.0,
        "Share of micro-batches with real windows of m n tokens, m a divisor of the batch size; costs memory.",
        "Sampling",
    )

    precision: str = setting("auto", "bf16 is autocast over fp32 weights; auto: bf16 on GPUs.", "Running", PRECISIONS)
    gradient_checkpointing: bool = setting(False, "Recompute activations: less memory, slower.", "Running")
    workers: int = setting(0, "Data loading processes.", "Running")
    save_every: int = setting(0, "Steps between checkpoints; a tenth of the run if 0.", "Running")
    keep_checkpoints: bool = setting(False, "Keep the last two checkpoints when the run is done.", "Running")

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        if reserved := sorted(set(self.options) & set(RESERVED)):
            raise ValueError(
                f"{reserved[0]} is no option of a method. If training lets you choose it, it is a setting of its own: "
                "see `longwave train --help`."
            )
        for name, least in (("train_length", 2), ("steps", 1), ("batch_size", 1), ("accumulation", 1), ("chunks", 1)):
            self._check(name, getattr(self, name) >= least, f"at least {least}")
        for name in ("lr", "field_lr", "weight_decay", "max_grad_norm"):
            self._check(name, math.isfinite(getattr(self, name)) and getattr(self, name) >= 0, "a number >= 0")
        for name in ("workers", "save_every", "seed"):
            self._check(name, getattr(self, name) >= 0, "a whole number >= 0")
        given = self.original_length
        self._check("original_length", given is None or given >= 2, "at least 2")
        for name in ("max_factor", "train_factor"):
            value = getattr(self, name)
            self._check(name, value is None or (math.isfinite(value) and value >= 1), "a number >= 1")
        for name in ("warmup", "short_share", "long_share"):
            self._check(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        self._check("long_share", self.short_share + self.long_share <= 1, "at most 1 together with short share")
        if self.positions == "chunks" and self.train_length:
            self._check("chunks", self.chunks <= self.train_length, f"at most the train length, {self.train_length}")
        for item in fields(self):
            allowed = item.metadata["choices"]
            self._check(item.name, not allowed or getattr(self, item.name) in allowed, f"one of {', '.join(allowed)}")

    def _check(self, name: str, ok: bool, allowed: str) -> None:
        if not ok:
            raise ValueError(f"{name.replace('_', ' ')} must be {allowed}, got {getattr(self, name)!r}.")

    @classmethod
    def create(cls, **given: Any) -> TrainConfig:
        """Defaults, then the method's recipe, then what is `given` (None counts as not given)."""
        from longwave.methods import parse_method

        given = {name: value for name, value in given.items() if value is not None}
        known = {item.name for item in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown training setting {unknown[0]!r}. Available: {', '.join(sorted(known))}.")
        method, _ = parse_method(given.get("method", "clex"))
        return cls(**(dict(method.recipe) | given))

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
        chosen = {"prior": self.prior, "log_n": self.log_n, "original_length": self.original_length}
        return {**self.options, **{name: value for name, value in chosen.items() if value is not None}}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Settings that differ from a recorded run in a way that would make it another run."""
        mine = self.as_dict()
        return [
            f"{name} {recorded.get(name)!r} -> {value!r}"
            for name, value in mine.items()
            if name not in RESUMABLE and recorded.get(name) != value
        ]
