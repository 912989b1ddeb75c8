"""The text of a run in tokens: made by one process of a node, read by all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from longwave.data.documents import read_documents
from longwave.data.once import once_per_node
from longwave.data.tokens import TokenStream, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_of_run(
    data: Iterable[Path | str], hashes: Mapping[str, str], tokenizer: PreTrainedTokenizerBase, *, progress: bool
) -> TokenStream:
    """The token stream of the data. The processes of a node share one, and one of them makes it.

    Arguments:
        hashes: of the data files, as `data_hashes` returned them.
        progress: show a bar, in the process that tokenises.
    """

    def make() -> str:
        return str(tokenise(read_documents(data, hashes), tokenizer, progress=progress).file)

    return TokenStream.open(once_per_node(make))
