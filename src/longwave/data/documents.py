"""Documents of files and folders, as a `datasets.Dataset`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.fingerprint import Hasher

from longwave.data.bars import progress_bars
from longwave.data.formats import read, texts
from longwave.data.kinds import Parsing, Source
from longwave.data.sources import find
from longwave.files import sha256

logger = logging.getLogger("longwave")

FEATURES = datasets.Features({"text": datasets.Value("string"), "broken": datasets.Value("string")})
BATCH = 100  # documents held in memory while they are read: `datasets` holds 1,000, and a document may be a book
NAMED = 3  # number of broken lines that a warning names
READING = 2  # part of the cache key: raise it when files are read in another way than before


@dataclass(frozen=True, eq=False)
class Documents:
    """What was read.

    Arguments:
        kept: with one column, `text`.
        broken: what is wrong with each line that was skipped.
        empty: number of documents without text.
    """

    kept: datasets.Dataset
    broken: list[str]
    empty: int


def read_documents(
    paths: Iterable[Path | str], hashes: Mapping[str, str] | None = None, parsing: Parsing | None = None
) -> datasets.Dataset:
    """Documents as a `datasets.Dataset` with one column, `text`.

    docs/data.md says which files are read, and what a document is in each kind of file. Empty documents are left out.
    The logger `longwave` tells the number of empty documents, and which files of a folder were passed over. The result
    is memory-mapped from the cache of `datasets`. The key is made of the files' contents: an edited file is read again.

    Arguments:
        paths: files and folders.
        hashes: what `data_hashes` of `paths` returned before; files that have changed since then are refused.
        parsing: how the files are read; strictly and by the column `text` if None.

    Raises:
        ValueError: if a path is missing, a file cannot be read or has changed, or no document is left.
    """
    return documents_of(paths, hashes, parsing).kept


def documents_of(
    paths: Iterable[Path | str], hashes: Mapping[str, str] | None = None, parsing: Parsing | None = None
) -> Documents:
    """As `read_documents`, with the number of empty documents and the lines that were skipped."""
    found = find(paths, parsing)
    if found.passed:
        logger.warning("passed over in the data: %s. To read such a file, pass its own path.", found.passed_over())
    contents = {str(source.file): sha256(source.file) for source in found.sources}
    if hashes is not None:
        _require_unchanged(hashes, contents)
    whole = _read(found.sources, list(contents.values()))
    if whole is not None and len(kept := _without_empty(whole)):
        broken = whole.data.column("broken").drop_null().to_pylist()
        if broken:
            shown = f"{' '.join(broken[:NAMED])}{' ...' if len(broken) > NAMED else ''}"
            logger.warning(
                "skipped %d broken line%s of the data: %s --strict refuses such data.",
                len(broken), "s" * (len(broken) > 1), shown,
            )  # fmt: skip
        if empty := len(whole) - len(kept) - len(broken):
            where = f"{_first_empty(found.sources)}{', ...' if empty > 1 else ''}"
            logger.warning("left out %d empty document%s of %d (%s).", empty, "s" * (empty > 1), len(whole), where)
        return Documents(kept.remove_columns("broken"), broken, empty)
    files = [source.file for source in found.sources]
    raise ValueError(f"the data holds no text: {len(files)} files, all empty ({files[0]}, ...).")


def _require_unchanged(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """A record names data by hashes that were taken earlier: the documents have to be the same."""
    changed = [file for file in {**before, **now} if before.get(file) != now.get(file)]
    if changed:
        raise ValueError(
            f"data {changed[0]} has changed since it was hashed. Start again, and leave the data as it is."
        )


def _first_empty(sources: Iterable[Source]) -> Path:
    """The first file with an empty document."""
    return next(source.file for source in sources for text in texts(source) if not text or text.isspace())


def _read(sources: Sequence[Source], hashes: Sequence[str]) -> datasets.Dataset | None:
    """All documents; None if there are none, which `datasets` cannot store."""
    if next(_rows(sources), None) is None:
        return None
    arguments = {"sources": sources, "hashes": hashes, "reading": READING}
    with progress_bars(False):
        try:
            return datasets.Dataset.from_generator(
                _rows, features=FEATURES, gen_kwargs=arguments, writer_batch_size=BATCH
            )
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError | OSError):  # longwave's, from deep inside the builder
                raise error.__cause__ from None
            raise


def _rows(sources: Iterable[Source], hashes: object = (), reading: int = READING) -> Iterator[dict[str, str | None]]:
    """Documents of `sources`, and what is wrong with broken lines: both are cached.

    The other arguments only make the cache key depend on the contents and on this code.
    """
    for source in sources:
        for each in read(source):
            yield {"text": each, "broken": None} if isinstance(each, str) else {"text": "", "broken": str(each)}


def _without_empty(documents: datasets.Dataset) -> datasets.Dataset:
    """The documents that hold more than white space. The choice is cached, too."""
    with progress_bars(False):
        kept = documents.filter(
            _have_text, batched=True, batch_size=64, new_fingerprint=Hasher.hash([documents._fingerprint, "have text"])
        )
    return documents if len(kept) == len(documents) else kept


def _have_text(batch: dict[str, list[str]]) -> list[bool]:
    return [bool(text) and not text.isspace() for text in batch["text"]]
