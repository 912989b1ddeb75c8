"""The settings of a training run. The help of `longwave train` is made from this file: no torch here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from longwave.data.mixture import Part, part_of
from longwave.data.paths import split_share
from longwave.recipes import SHORT
from longwave.settings import REQUIRED, Settings, setting
from longwave.training.lora import LoraSettings, from_older

POSITIONS = ("chunks", "random", "uniform", "none")
FACTORS = ("log-uniform", "integer", "fixed")
LOG_N_COUNTS = ("keys", "positions")
AUTO = "auto"
ENGINE_METHOD = "ntk"  # the method of `engine_ready` where none is named
LORA_RATE, LORA_SIZE = 5e-3, 2_000_000
# Arguments of `longwave.extend` that are no options of a method: training sets them from settings of its own.
RESERVED = (
    "model", "method", "max_factor", "schedule", "prior", "log_n", "beyond", "original_length", "trajectory",
    "head_scalars", "adapter",
)  # fmt: skip
PRECISIONS = ("auto", "bf16", "fp32")
APART, JOINED = DOCUMENTS = ("apart", "joined")
LOSS_BLOCKS = ("auto", "on", "off")
QUANTIZED = ("4bit", "8bit")
LR_SCHEDULES = ("cosine", "linear", "constant")
TRACKERS = ("none", "tensorboard", "wandb")

# Settings that may change when a run is resumed: they alter nothing that was drawn or computed before.
# `Ranks` checks accumulation, which depends on the number of processes.
RESUMABLE = {
    "accumulation",
    "deepspeed",
    "loss_blocks",
    "lr",
    "field_lr",
    "head_lr",
    "max_grad_norm",
    "save_every",
    "save_total_limit",
    "sequence_parallel",
    "keep_checkpoints",
    "workers",
}
LEARNING = ("lr", "field_lr", "head_lr", "max_grad_norm")  # of those: how the steps to come learn
# What is measured and told while a run goes, and when it is given up.
RESUMABLE |= {"eval_data", "eval_every", "eval_lengths", "eval_windows", "stop_rise", "stop_steps", "report_to"}

# What runs did before they had these settings. A run that is resumed keeps them as they were recorded.
EARLIER_RUNS = {"documents": JOINED, "loss_blocks": "off"}

of_length, of_method, of_data, of_optimisation, of_sampling, of_running, of_watching = (
    partial(setting, group=group)
    for group in ("Length", "Method", "Data", "Optimisation", "Sampling", "Running", "Watching")
)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """What a run depends on besides the model and the data. Build it with `TrainConfig.create`.

    Raises:
        ValueError: naming the setting, what it got and what it allows.
    """

    noun: ClassVar[str] = "training setting"
    recipe: ClassVar[Mapping[str, Any]] = SHORT
    recipe_of: ClassVar[str] = "two-band"

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
    lora: str | None = of_method(
        None,
        "Train a LoRA of PEFT: r=16,alpha=32,dropout=0,targets=q_proj+v_proj,gate=capped, or none, or the rank alone "
        "(a number, full, auto). By its gate the weights follow t, and within L the model is the plain one, bit for "
        "bit: capped, ramp, hard. gate=none is a plain LoRA, on at all lengths: within L the model changes, too. The "
        "method's.",
        metavar="r=N,...",
    )
    quantize: str | None = of_method(
        None,
        "Hold the base's weights in 4 bits (nf4) or 8 while a LoRA or an extension is trained, by bitsandbytes.",
        choices=QUANTIZED,
    )
    chat_template: str | None = of_method(
        None, "File with the chat template for data that are chats; the tokenizer's.", metavar="FILE"
    )
    options: Mapping[str, Any] = of_method((), "Further option of the method, KEY=VALUE (JSON); repeatable.")

    replay: str | None = of_data(
        None,
        "Text of micro-batches without gaps, as in pre-training, and their share of all. It takes the place of "
        "--short-share.",
        metavar="PATH@SHARE",
    )
    long_documents: str | None = of_data(
        None, "Read documents of at least --train-length tokens so many times as often: 2x.", metavar="Nx"
    )
    text_column: str = of_data("text", "Column or field that holds the texts.", metavar="NAME")
    strict: bool = of_data(False, "Refuse data with a broken line, which is skipped and counted otherwise.")

    steps: int = of_optimisation(1000, "Optimizer steps.", least=1)
    batch_size: int = of_optimisation(8, "Rows per micro-batch and process; they share one factor t.", least=1)
    accumulation: int = of_optimisation(1, "Micro-batches per optimizer step and process.", least=1)
    lr: float | None = of_optimisation(
        None, "Learning rate of the weights, cosine to zero; 2e-5, of a LoRA 5e-3 for 2 M parameters, less for more.",
        least=0,
    )  # fmt: skip
    field_lr: float = of_optimisation(5e-3, "Learning rate of the learned frequencies, same schedule.", least=0)
    warmup: float = of_optimisation(0.03, "Share of the steps with rising learning rate.", least=0, most=1)
    lr_schedule: str = of_optimisation(
        "cosine", "Fall of the learning rates after the warmup; constant: none.", choices=LR_SCHEDULES
    )
    least_lr: float = of_optimisation(0.0, "Where the cosine ends, as a share of the learning rates.", least=0, most=1)
    beta2: float = of_optimisation(0.999, "Adam's decay of squared gradients; 0.95 is common.", least=0, most=1)
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
    documents: str = of_sampling(
        APART, "Whether tokens of a row see their own document alone, or earlier ones, too.", choices=DOCUMENTS
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
    sequence_parallel: int = of_running(1, "Processes that share each row, by DeepSpeed's Ulysses.", least=1)
    gradient_checkpointing: bool = of_running(False, "Recompute activations: less memory, slower.")
    loss_blocks: str = of_running(
        "auto", "Compute the loss in blocks of tokens: much less memory, the same loss; auto: where logits are many.",
        choices=LOSS_BLOCKS,
    )  # fmt: skip
    workers: int = of_running(0, "Data loading processes.", least=0)
    save_every: int = of_running(0, "Steps between checkpoints; a tenth of the run if 0.", least=0)
    save_total_limit: int = of_running(
        2, "Checkpoints to keep while training. With 1 there is none to fall back on if it is damaged.", least=1
    )
    keep_checkpoints: bool = of_running(False, "Keep these checkpoints when the run is done, too.")

    eval_data: str | None = of_watching(
        None, "Held-out text whose perplexity by length is measured while training.", metavar="PATH"
    )
    eval_every: int = of_watching(0, "Steps between these measurements; a tenth of the run if 0.", least=0)
    eval_lengths: str | None = of_watching(
        None, "Their lengths, such as 1x,4x; doublings of 1x up to --max-factor.", metavar="N,..."
    )
    eval_windows: int = of_watching(16, "Their windows of each length.", least=1)
    stop_rise: float = of_watching(
        3.0, "Give up when the loss is so many nats above its lowest running mean for --stop-steps steps; 0: never.",
        least=0,
    )  # fmt: skip
    stop_steps: int = of_watching(20, "How many steps in a row that must be.", least=1)
    report_to: str = of_watching("none", "Also send losses and perplexities there.", choices=TRACKERS)

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
        if self.lora is not None:
            object.__setattr__(self, "lora", LoraSettings.canonical(str(self.lora)))
        if self.lora_settings is not None and self.freeze_weights:
            raise ValueError("freeze weights leaves no LoRA to train. Leave one of the two out.")
        if self.chat_template is not None and not Path(self.chat_template).is_file():
            raise ValueError(f"chat template {self.chat_template} is no file. Pass a file with a Jinja template.")
        if self.long_documents is not None and self.long_times < 1:
            raise ValueError(f"long documents must be a whole number of times such as 2x, got {self.long_documents!r}.")
        if self.short_share + self.long_share > 1:
            raise ValueError(f"long share must be at most 1 together with short share, got {self.long_share!r}.")
        if self.least_lr and self.lr_schedule != "cosine":
            raise ValueError(
                f"least lr ends a cosine, and lr schedule is {self.lr_schedule}. Leave one of the two out."
            )
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
        if "replay" in given:
            given["short_share"] = replayed(given["replay"], given.get("short_share"))
        given = from_older(given)
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
            recipe.pop("lora", None)
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
    def long_times(self) -> int:
        """How often documents of at least the train length are read, others once; 0 for a setting that is none."""
        times = (self.long_documents or "1x").removesuffix("x")
        return int(times) if times.isdigit() else 0

    @property
    def replay_part(self) -> Part | None:
        """The data of the replay; None for none."""
        return None if self.replay is None else Part((split_share(self.replay)[0],), self.short_share)

    @property
    def lora_settings(self) -> LoraSettings | None:
        """Of a new LoRA; None for none."""
        return None if self.lora is None else LoraSettings.parse(self.lora)

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
    def eval_steps(self) -> int:
        return self.eval_every or max(1, self.steps // 10)

    @property
    def method_options(self) -> dict[str, Any]:
        """Keyword arguments for `extend` beyond the method, its factor and its schedule."""
        from longwave.extensions.spec import parse_spec  # needs torch

        options = parse_spec(self.method).joined(self.options)
        chosen = {"prior": self.prior, "log_n": self.log_n, "original_length": self.original_length}
        return {**options, **{name: value for name, value in chosen.items() if value is not None}}

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Settings that differ from a recorded run in a way that would make it another run."""
        return [change for name, change in self._changes(recorded) if name not in RESUMABLE]

    def changed_learning(self, recorded: Mapping[str, Any]) -> list[str]:
        """Settings of `LEARNING` that differ from a recorded run: it goes on with the new ones."""
        return [change for name, change in self._changes(recorded) if name in LEARNING]

    def _changes(self, recorded: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        known: dict[str, Any] = {
            item.name: item.default for item in fields(self)
        } | EARLIER_RUNS  # older records lack some
        recorded = known | from_older(dict(recorded))
        mine = json.loads(json.dumps(self.as_dict()))  # as a record holds them: a tuple is a list there
        if isinstance(recorded.get("lora"), str):
            recorded["lora"] = LoraSettings.canonical(recorded["lora"])
        for name, value in mine.items():
            if recorded.get(name) != value:
                yield name, f"{name} {recorded.get(name)!r} -> {value!r}"


def replayed(replay: str, short_share: Any) -> float:
    """The share of a replay `PATH@SHARE`.

    Raises:
        ValueError: if there is none, or if `short_share` is another.
    """
    path, share = part_of(replay)
    if share is None:
        raise ValueError(f"replay is data with their share, {path}@0.1 for example, got {replay!r}.")
    if short_share not in (None, share):
        raise ValueError(f"short share is {short_share!r}, and the replay has a share of {share:g}. Leave one out.")
    return share
