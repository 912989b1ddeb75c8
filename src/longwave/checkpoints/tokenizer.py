"""The tokenizer of a folder, and the reason if it does not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from longwave.checkpoints.folder import Kind, ModelFolder, resolve, tokenizer_folder
from longwave.errors import first_line
from longwave.files import read_object
from longwave.layout import SENTENCEPIECE, TOKENIZER_CONFIG, TOKENIZER_JSON

JSON = (TOKENIZER_CONFIG, TOKENIZER_JSON, "special_tokens_map.json", "added_tokens.json", "vocab.json")


def load_tokenizer(path: Path | str | ModelFolder, **where: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of any model that `load` reads.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        where: for the hub, as in `resolve`.

    Raises:
        ValueError: naming the file that is missing or damaged, or the package that is missing.
    """
    found = resolve(path, **where)
    place: Path | str = found.name
    where = dict(found.where)
    if found.kind is Kind.LONGWAVE:
        found.fetch(weights=False)
        place, where = tokenizer_folder(found.path, found.model) or found.path, {}
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **where)
    except Exception as error:  # tokenizers raises the bare Exception, transformers any error of its readers
        raise ValueError(_tokenizer_fault(found, place, error)) from None


def damaged_tokenizer(folder: Path) -> str | None:
    """What is wrong with the JSON files of a tokenizer, if anything is."""
    for path in (folder / name for name in JSON):
        try:
            if path.is_file():
                read_object(path)
        except ValueError as damage:
            return str(damage)
    return None


def _tokenizer_fault(found: ModelFolder, place: Path | str, error: Exception) -> str:
    """Why a tokenizer does not load. The library's message often names no file."""
    folder = place if isinstance(place, Path) else found.path  # where it was looked for
    if damage := damaged_tokenizer(folder):
        return damage
    settings = folder / TOKENIZER_CONFIG
    content = read_object(settings) if settings.is_file() else {}
    if "auto_map" in content:
        return (
            f"{settings} asks for the class {content.get('tokenizer_class')}, which is code of the checkpoint, and "
            "longwave does not run remote code. Save the tokenizer as a tokenizer.json first."
        )
    if tokenizer_folder(folder) is None and found.where.get("local_files_only"):
        return f"the cache holds no tokenizer of {found.name}, and the hub is not asked. Load it once with a network."
    if tokenizer_folder(folder) is None and not found.where:
        return f"{found.name} holds no tokenizer. Copy the model's there, or pass tokenizer= to longwave.save."
    sentencepiece = next((folder / name for name in SENTENCEPIECE if (folder / name).is_file()), None)
    if sentencepiece is not None and not (folder / TOKENIZER_JSON).is_file():
        have = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
        if lacking := [name for name, there in have.items() if not there]:
            return (
                f"{sentencepiece} cannot be read without {' and '.join(lacking)}. Put the model's tokenizer.json "
                f"beside it, or pip install {' '.join(lacking)}."
            )
    return f"cannot load a tokenizer from {found.name}: {first_line(error)}"
