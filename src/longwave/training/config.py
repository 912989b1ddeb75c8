"""The settings of a training run. The help of `longwave train` is made from this file: no torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from longwave.recipes import SHORT
from longwave.settings import REQUIRED, Settings, setting

POSITIONS = ("chunks", "random", "uniform", "none")
FACTORS = ("log-uniform", "integer", "fixed")
LOG_N_COUNTS = ("keys", "positions")
GATES = ("capped", "ramp", "hard")
NO_LORA, AUTO = "none", "auto"
LORA_RANK = 16  # of `auto`, where the model has no LoRA
ENGINE_METHOD = "ntk"  # the method of `engine_ready` where none is named
LORA_RATE, LORA_SIZE = 5e-3, 2_000_000
# Arguments of `longwave.extend` that are no options of a method: training sets them from settings of its own.
RESERVED = (
    "model", "method", "max_factor", "schedule", "prior", "log_n", "beyond", "original_length", "trajectory",
    "head_scalars", "adapter",
)  # fmt: skip
PRECISIONS = ("auto", "bf16", "fp32")

# Settings that may change when a run is resumed: they alter nothing that was drawn or computed before.
# `Ranks` checks accumulation, which depends on the number of processes.
RESUMABLE = {
    "lr", "field_lr", "head_lr", "max_grad_norm", "save_every", "keep_checkpoints", "workers", "accumulation",
    "deepspeed",
}  # fmt: skip

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

    train_length: int = of_length(REQUIRED, "Longest real window that training sees, in tokens.", least=2)
    max_factor: float = of_length(
        REQUIRED, "Largest length factor the model is to serve: 16 is 16 x the original.", least=1
    )
    row_length: str | None = of_length(
        None,
        "Tokens of a row, whose positions may skip: 512, or 2x for twice the original length; auto is 2x, but at most "
        "--train-length; --train-length.",
        metavar="N|Nx|auto",
    )
    original_length: int | None = of_length(None, "Pre-trained context length L; read from the model.", least=2)
    train_factor: float | None = of_length(None, "Largest factor drawn in training; --max-factor.", least=1)
    least_factor: float | None = of_length(
        None, "Smallest factor drawn for rows whose positions skip; 1, or what the row needs.", least=1
    )

    method: str = of_method("two-band", "METHOD[@SCHEDULE][+ATTENTION], see `longwave methods`.")
    engine_ready: bool = of_method(
        False, "Train what other engines run by export: frequencies, a constant temperature, merged weights."
    )
    prior: str | None = of_method(None, "Closed form that CLEX starts from: ntk, yarn, linear; the method's.")
    log_n: float | None = of_method(None, "Exponent of the per-query log-n attention scaling, 0 for off; the method's.")
    head_scalars: bool = of_method(False, "Learn a mass and a temperature for each head of the attention layers.")
    lora_rank: str | None = of_method(
        None,
        "Let the weights follow t by a LoRA of this rank, off within L: a number, full, none, or auto, which is 16 or "
        "the rank that the model's LoRA has; the method's.",
        metavar="RANK",
    )
    gate: str | None = of_method(None, "How much of the LoRA counts at t; capped, or the LoRA's own.", choices=GATES)
    options: Mapping[str, Any] = of_method((), "Further option of the method, KEY=VALUE (JSON); repeatable.")

    steps: int = of_optimisation(1000, "Optimizer steps.", least=1)
    batch_size: int = of_optimisation(8, "Rows per micro-batch and process; they share one factor t.", least=1)
    accumulation: int = of_optimisation(1, "Micro-batches per optimizer step and process.", least=1)
    lr: float | None = of_optimisation(
        None, "Learning rate of the weights, cosine to zero; 2e-5, of a LoRA 5e-3 for 2 M parameters, less for more.",
        least=0,
    )  # fmt: skip
    field_lr: float = of_optimisation(5e-3, "Learning rate of the learned frequencies, same schedule.", least=0)
    warmup: float = of_optimisation(0.03, "Share of the steps with rising learning rate.", least=0, most=1)
    weight_decay: float = of_optimisation(0.0, "On the model's matrices; never on the frequencies.", least=0)
    max_grad_norm: float = of_optimisation(1.0, "Gradient clipping, weights and frequencies each; 0: off.", least=0)
    head_lr: float = of_optimisation(3e-2, "Learning rate of the scalars of heads, same schedule.", least=0)
    freeze_weights: bool = of_optimisation(False, "Train the extension only: frequencies, scalars of heads.")
    seed: int = of_optimisation(0, "Seed of every random draw.", least=0)

    positions: str = of_sampling("chunks", "Positions of a row's tokens in [0, tL).", choices=POSITIONS)
    chunks: int = of_sampling(4, "Contiguous chunks of a row, for --positions chunks.", least=1)
    factors: str = of_sampling("log-uniform", "How t is drawn from [least factor, train factor].", choices=FACTORS)
    log_n_count: str = of_sampling(
        "keys", "What log-n counts in training: the keys a query sees, or its position.", choices=LOG_N_COUNTS
    )
    short_share: float = of_sampling(
        0.0, "Share of micro-batches of rows without gaps, at the smallest t for the row.", least=0, most=1
    )
    long_share: float = of_sampling(
        0.0,
        "Share of micro-batches of real windows of m rows, m > 1 a divisor of the batch size, up to --train-length; "
        "m = 1, too, where a row is longer than L. Costs memory.",
        least=0, most=1,
    )  # fmt: skip

    precision: str = of_running("auto", "bf16 is autocast over fp32 weights; auto: bf16 on GPUs.", choices=PRECISIONS)
    deepspeed: str | None = of_running(
        None, "Config of DeepSpeed (JSON), for runs that torchrun starts; see recipes/engines/.", metavar="FILE"
    )
    gradient_checkpointing: bool = of_running(False, "Recompute activations: less memory, slower.")
    workers: int = of_running(0, "Data loading processes.", least=0)
    save_every: int = of_running(0, "Steps between checkpoints; a tenth of the run if 0.", least=0)
    keep_checkpoints: bool = of_running(False, "Keep the last two checkpoints when the run is done.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        given: object = self.row_length
        if type(given) is int:  # as Python writes a number of tokens
            object.__setattr__(self, "row_length", str(given))
        super().__post_init__()
        if reserved := sorted(set(self.options) & set(RESERVED)):
            raise ValueError(
                f"{reserved[0]} is no option of a method. If training lets you choose it, it is a setting of its own: "
                "see `longwave train --help`."
            )
        rank = self.rank
        if rank is not None and rank != "full" and (isinstance(rank, str) or rank < 1):
            raise ValueError(f"lora rank must be a whole number >= 1, full, auto, or none, got {self.lora_rank!r}.")
        if rank is not None and self.freeze_weights:
            raise ValueError("freeze weights leaves no LoRA to train. Leave one of the two out.")
        if self.short_share + self.long_share > 1:
            raise ValueError(f"long share must be at most 1 together with short share, got {self.long_share!r}.")
        if self.row_length != AUTO and not (self.row_length or "").endswith("x"):
            self.row_tokens(1)

    @classmethod
    def create(cls, **given: Any) -> TrainConfig:
        """Defaults, then the method's recipe, then what is `given` (None counts as not given)."""
        for needed in ("train_length", "max_factor"):
            if given.get(needed) is None:
                raise ValueError(f"training needs {needed.replace('_', ' ')}: pass {needed}=...")
        from longwave.extensions.spec import parse_spec  # needs torch

        given = {name: value for name, value in given.items() if value is not None}
        if "lora_rank" in given:
            given["lora_rank"] = str(given["lora_rank"])
        ready = bool(given.get("engine_ready"))
        if ready:
            given.setdefault("method", ENGINE_METHOD)
        spec = parse_spec(given.get("method", cls.method))
        if ready and spec.attention is not None:
            raise ValueError(
                f"engine ready trains what other engines run: frequencies, a constant temperature and merged weights. "
                f"{spec.name} is an attention method, which none of them has. Leave one of the two out."
            )
        recipe = dict(spec.recipe) | (dict(SHORT) if ready else {})
        if given.get("freeze_weights"):
            recipe.pop("lora_rank", None)
        short = given.get("short_share")
        if "long_share" in recipe and isinstance(short, int | float):
            recipe["long_share"] = min(recipe["long_share"], max(0.0, 1.0 - short))
        if "least_factor" in recipe:  # a small model need not reach so far
            farthest = given.get("train_factor") or given["max_factor"]
            recipe["least_factor"] = min(recipe["least_factor"], farthest) if isinstance(farthest, int | float) else 1.0
        return super().create(**(recipe | given))

    def rate(self, parameters: int, *, lora: bool) -> float:
        """The learning rate of the weights of a model with so many parameters, or of its LoRA.

        A LoRA of the demo model (1.9 M parameters) was best at 5e-3. Larger models want less; the root of their size is
        between what is known of 7 B models (1e-4) and this.
        """
        if self.lr is not None:
            return self.lr
        return 2e-5 if not lora else LORA_RATE * (LORA_SIZE / max(parameters, LORA_SIZE)) ** 0.5

    @property
    def rank(self) -> int | str | None:
        """Of a new LoRA; None for none."""
        if self.lora_rank in (None, NO_LORA):
            return None
        if self.lora_rank == AUTO:
            return LORA_RANK
        return int(self.lora_rank) if str(self.lora_rank).isdigit() else self.lora_rank

    @property
    def longest_window(self) -> int:
        """The longest real window that training sees, in tokens."""
        return self.train_length

    def row_tokens(self, original_length: int) -> int:
        """Tokens of a row of a model with this original length.

        Raises:
            ValueError: for a row length that is none, or that does not go with the other settings.
        """
        given: Any = self.train_length if self.row_length is None else self.row_length
        if given == AUTO:
            given = min(2 * original_length, self.train_length) if self.long_share else self.train_length
        try:
            tokens = round(float(str(given).removesuffix("x")) * original_length) if "x" in str(given) else int(given)
        except (ValueError, OverflowError):
            tokens = 0
        shown = f"{given} ({tokens} tokens)" if "x" in str(given) else given
        if tokens < 2:
            raise ValueError(f"row length must be tokens such as 512, or 2x for twice L, at least 2, got {given!r}.")
        if tokens > self.train_length:
            raise ValueError(
                f"row length must be at most the train length, {self.train_length}, the longest real window, got "
                f"{shown}. Pass a longer train length or a shorter row length."
            )
        if self.positions == "chunks" and self.chunks > tokens:
            raise ValueError(f"chunks must be at most the row length, {tokens}, got {self.chunks!r}.")
        if tokens < self.train_length and not self.long_share:
            raise ValueError(
                f"train length {self.train_length} is never reached: rows have {tokens} tokens, and long share is 0. "
                f"Set long share, or train length to {tokens}."
            )
        return tokens

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
