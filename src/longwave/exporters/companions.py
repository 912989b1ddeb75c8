"""What belongs to a checkpoint beside its config and weights: tokenizer, chat template, licence, ..."""

from __future__ import annotations

import shutil
from pathlib import Path

from longwave.exporters.source import Source
from longwave.files import read_object, write_json
from longwave.layout import CONFIG, GENERATION, TOKENIZER_CONFIG, TOKENIZER_FILES
from longwave.trajectory import Snapshot

# Code that would need trust_remote_code is not among them.
BESIDE = (
    *TOKENIZER_FILES, "*.model", GENERATION, "preprocessor_config.json", "video_preprocessor_config.json",
    "audio_tokenizer_config.json", "processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def code_notes(source: Source) -> list[str]:
    """A note for a model with Python code of its own. An export has no code: classes of transformers read it.

    Raises:
        ValueError: for a file that holds no JSON object. `copy_beside` could not write it.
    """
    paths = [source.model / CONFIG]
    paths += [place / name for name in (TOKENIZER_CONFIG, GENERATION) for place in _places(source)]
    named = dict.fromkeys(path.name for path in paths if path.is_file() and "auto_map" in read_object(path))
    return [f"{' and '.join(named)} named Python code (auto_map). The export leaves that code out."] if named else []


def _places(source: Source) -> list[Path]:
    """The folders that are copied from; a file of the last one stays."""
    return list(dict.fromkeys((source.model, source.tokenizer)))


def copy_beside(source: Source, snapshot: Snapshot, folder: Path) -> None:
    """Tokenizer, generation config, chat template, licence; the tokenizer learns the new length."""
    for place in _places(source):
        for pattern in BESIDE:
            for path in sorted(place.glob(pattern)):
                if path.is_file():
                    copy = folder / path.relative_to(place)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, copy)
    settings = folder / TOKENIZER_CONFIG
    if settings.is_file():
        kept = {key: value for key, value in read_object(settings).items() if key != "auto_map"}
        write_json(settings, {**kept, "model_max_length": snapshot.max_length})
    generation = folder / GENERATION
    if generation.is_file():  # a length of the model before would end texts early
        write_json(generation, {key: value for key, value in read_object(generation).items() if key != "max_length"})
