"""The text of a run: read and tokenised by one process of a node, mapped and mixed by all."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from longwave.data.chat_tokens import ChatStream, chat_stream
from longwave.data.chats import hold_chats, read_chats
from longwave.data.documents import documents_of
from longwave.data.hashes import data_hashes
from longwave.data.kinds import Parsing
from longwave.data.mixture import Part, parts_of
from longwave.data.once import once_per_node
from longwave.data.prompts import check_ids
from longwave.data.tokens import TokenStream, tokenise
from longwave.files import sha256
from longwave.training.batches import PackedRows
from longwave.training.config import TrainConfig
from longwave.training.draw import LengthSampler
from longwave.training.mixture import MixedRows
from longwave.training.packing import pack_text
from longwave.training.prepare import require_long_windows

if TYPE_CHECKING:
    from collections import Counter

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Asked:
    """The data that a run is to read.

    Arguments:
        parts: of the mixture; one if nothing is mixed.
        replay: data for the micro-batches of rows without gaps. With None, these read the parts.
        parsing: how files are read.
        template: file with the chat template; None for the tokenizer's.
    """

    parts: tuple[Part, ...]
    replay: Part | None
    parsing: Parsing
    template: str | None = None

    @classmethod
    def of(cls, data: Path | str | Iterable[Path | str], config: TrainConfig) -> Asked:
        """The data as given, one or several, and what the settings say of them."""
        data = [data] if isinstance(data, Path | str) else data
        replay = config.replay_part
        return cls(parts_of(data), replay, Parsing(config.text_column, config.strict), config.chat_template)

    @property
    def all(self) -> tuple[Part, ...]:
        """Parts of the mixture, and the replay."""
        return (*self.parts, *([self.replay] if self.replay else []))

    @property
    def paths(self) -> list[str]:
        """Everything that the run reads."""
        return [path for part in self.all for path in part.paths]

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part by its name; empty if nothing is mixed."""
        return {part.name: part.share for part in self.parts} if len(self.parts) > 1 else {}

    @cached_property
    def hashes(self) -> list[dict[str, str]]:
        """SHA-256 of the files of each part. One process of a node reads the files."""
        found: list[dict[str, str]] = once_per_node(
            lambda: [data_hashes(part.paths, self.parsing) for part in self.all]
        )
        return found

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of all files, for the record."""
        own = {} if self.template is None else {self.template: sha256(Path(self.template))}
        return {file: sha for each in self.hashes for file, sha in each.items()} | own

    def with_template(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer; a copy of it where the settings name a chat template, which the copy has."""
        if self.template is None:
            return tokenizer
        copied = copy.deepcopy(tokenizer)
        copied.chat_template = Path(self.template).read_text("utf-8")
        return copied

    def text(self, tokenizer: PreTrainedTokenizerBase, *, progress: bool) -> Text:
        """The data in tokens. The processes of a node share them, and one of them makes them.

        Chats are read by every process: they are written by the template, and hold which tokens the loss counts.

        Arguments:
            progress: show a bar, in the process that tokenises.

        Raises:
            ValueError: for a chat template where no part holds chats.
        """
        chats = [hold_chats(part.paths, self.parsing) for part in self.all]
        if self.template is not None and not any(chats):
            raise ValueError(
                f"chat template {self.template} is for chats, and the data hold none: rows with a column `messages`. "
                "Leave it out."
            )

        def make() -> list[Any]:
            found: list[Any] = []
            for part, hashes, chat in zip(self.all, self.hashes, chats, strict=True):
                if chat:
                    found.append(["", 0])
                    continue
                read = documents_of(part.paths, hashes, self.parsing)
                found.append([str(tokenise(read.kept, tokenizer, progress=progress).file), len(read.broken)])
            return found

        made = once_per_node(make)
        streams = [
            TokenStream.open(file)
            if file
            else chat_stream(read_chats(part.paths, hashes), tokenizer, progress=progress)
            for part, hashes, (file, _) in zip(self.all, self.hashes, made, strict=True)
        ]
        return Text(self, streams, sum(broken for _, broken in made))


@dataclass(frozen=True, eq=False)
class Text:
    """The text of a run in tokens.

    Arguments:
        asked: what it was made of.
        streams: the tokens of each part, the replay last.
        broken: number of lines that were skipped because they could not be read.
    """

    asked: Asked
    streams: Sequence[TokenStream]
    broken: int

    def check(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse tokens that the model has no row for."""
        for stream in self.streams:
            check_ids(stream.tensor(), model, tokenizer)

    def rows(self, config: TrainConfig, sampler: LengthSampler, items: int) -> PackedRows:
        """The rows of the whole run.

        Raises:
            ValueError: for data that are too short for a row or for the longest real window.
        """
        packed = [self._packed(number, config, sampler, items) for number in range(len(self.streams))]
        if config.long_times > 1 and all(each.often is None for each in packed):
            raise ValueError(
                f"long documents are those of at least {config.train_length} tokens, the train length, and the data "
                "hold none. Leave --long-documents out, or train shorter."
            )
        parts, shares = packed[: len(self.asked.parts)], [part.share for part in self.asked.parts]
        rows = parts[0] if len(parts) == 1 else MixedRows(parts, shares, items, config.seed)
        if self.asked.replay is not None:
            rows.replay = packed[-1]
        return rows

    def used(self, counts: Counter[int]) -> dict[str, Any]:
        """What a run has read, for its record.

        Arguments:
            counts: tokens by number of the part; -1 is the replay.
        """
        tokens: dict[str, Mapping[str, int]] = {
            "tokens_by_source": {part.name: counts[number] for number, part in enumerate(self.asked.parts)}
        }
        if self.asked.replay is not None:
            tokens["tokens_of_replay"] = {self.asked.replay.name: counts[-1]}
        return {**tokens, "broken_lines": self.broken}

    def _packed(self, number: int, config: TrainConfig, sampler: LengthSampler, items: int) -> PackedRows:
        stream, part = self.streams[number], self.asked.all[number]
        try:
            rows, marks = pack_text(stream, config.row_tokens(sampler.original_length), config.documents)
            if part is not self.asked.replay:
                require_long_windows(rows, sampler, config)
        except ValueError as error:
            raise ValueError(f"data {part.name}: {error}") if len(self.streams) > 1 else error from None
        often = None if part is self.asked.replay else _often(stream, rows, config)
        return PackedRows(rows, items, config.seed, marks, often)


def _often(stream: TokenStream, rows: torch.Tensor, config: TrainConfig) -> torch.Tensor | None:
    """The number of each row, once for each time that it is read. Rows with their middle in a long document repeat."""
    if isinstance(stream, ChatStream):  # whole chats in rows of their own order
        return None
    length = rows.shape[1]
    middles = np.arange(len(rows)) * length + length // 2
    document = np.searchsorted(stream.starts, middles, side="right") - 1
    long = stream.sizes[document] >= config.train_length
    if config.long_times == 1 or not long.any():
        return None
    return torch.from_numpy(np.repeat(np.arange(len(rows)), np.where(long, config.long_times, 1)))
