"""What `--lora` asks for: PEFT's settings and the gate, as one text. No torch here: help is made from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from longwave.names import unknown

AUTO, FULL, NONE = "auto", "full", "none"
GATES = ("capped", "ramp", "hard", NONE)
RANK = 16  # of `auto`, where the model has no LoRA
EVERY = "all-linear"  # of targets, as PEFT calls it
NAMES = {"rank": "r", "alpha": "alpha", "dropout": "dropout", "targets": "targets", "gate": "gate"}  # field -> key


@dataclass(frozen=True)
class LoraSettings:
    """The parts of `--lora`; None is what the model's LoRA has, or the default.

    Arguments:
        rank: r, a whole number >= 1, `full`, or `auto`, which is 16 or the rank that the model's LoRA has.
        alpha: PEFT's lora_alpha; 2·r.
        dropout: of the LoRA's input; 0.
        targets: names of linear layers; all of the decoder's layers.
        gate: how much of ΔW counts at t; capped.

    Raises:
        ValueError: for a value that cannot be.
    """

    rank: int | str = AUTO
    alpha: float | None = None
    dropout: float | None = None
    targets: tuple[str, ...] | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        if self.rank not in (AUTO, FULL) and (not isinstance(self.rank, int) or self.rank < 1):
            raise ValueError(f"lora: r must be a whole number >= 1, full, or auto, got {self.rank!r}.")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise ValueError(f"lora: alpha must be a number over 0, got {self.alpha!r}.")
        if self.alpha is not None and self.rank == FULL:
            raise ValueError("lora: a full rank has an alpha of its own in each layer. Leave alpha out.")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"lora: dropout must be at least 0 and under 1, got {self.dropout!r}.")
        if self.targets is not None and not (self.targets and all(self.targets)):
            raise ValueError("lora: targets must be names of linear layers, such as q_proj+v_proj, or all-linear.")
        if self.gate is not None and self.gate not in GATES:
            raise ValueError(f"lora: {unknown('gate', self.gate, GATES)}")

    @classmethod
    def parse(cls, text: str) -> LoraSettings | None:
        """Read `16`, `full`, `auto`, or `r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj,gate=none`.

        Returns:
            None for `none` or `off`: no LoRA.

        Raises:
            ValueError: for a part that is unknown, given twice, or cannot be.
        """
        if text in (NONE, "off"):
            return None
        if "=" not in text:
            return cls(rank=_rank(text))
        found: dict[str, Any] = {}
        for part in text.split(","):
            key, sign, value = (word.strip() for word in part.partition("="))
            name = next((field for field, own in NAMES.items() if own == key), None)
            if not sign or not value:
                raise ValueError(f"lora has the form r=16,alpha=32,targets=q_proj+v_proj, got {part!r}.")
            if name is None:
                raise ValueError(f"lora: {unknown('setting', key, tuple(NAMES.values()))}")
            if name in found:
                raise ValueError(f"lora: {key} is given twice. Leave one out.")
            found[name] = READ[name](value)
        return cls(**found)

    @classmethod
    def canonical(cls, text: str) -> str:
        """The same settings in one spelling, so that records of equal runs are equal."""
        found = cls.parse(text)
        return NONE if found is None else str(found)

    def __str__(self) -> str:
        return ",".join(f"{key}={_shown(value)}" for key, value in self.given())

    def given(self) -> Iterator[tuple[str, Any]]:
        """Key and value of what is not left open; r always."""
        for item in fields(self):
            if (value := getattr(self, item.name)) is not None:
                yield NAMES[item.name], value


def from_older(given: dict[str, Any]) -> dict[str, Any]:
    """Settings with `lora` in the place of `lora_rank` and `gate`, its names in earlier versions.

    Raises:
        ValueError: where both are given.
    """
    rank, gate = given.get("lora_rank"), given.get("gate")
    rest = {name: value for name, value in given.items() if name not in ("lora_rank", "gate")}
    if rank is None and gate is None:
        return rest
    if rest.get("lora") is not None:
        raise ValueError("lora rank and gate are older names for parts of lora. Give lora alone: r=16,gate=ramp.")
    rank = AUTO if rank is None else str(rank)
    return rest | {"lora": rank if rank == NONE or gate is None else f"r={rank},gate={gate}"}


def _rank(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"lora: {text!r} must be a number.") from None


def _targets(text: str) -> tuple[str, ...] | None:
    return None if text == EVERY else tuple(text.split("+"))


def _shown(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


READ: dict[str, Callable[[str], Any]] = {
    "rank": _rank,
    "alpha": _number,
    "dropout": _number,
    "targets": _targets,
    "gate": str,
}
