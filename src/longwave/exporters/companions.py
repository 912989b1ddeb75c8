"""What belongs to a checkpoint beside its config and weights: tokenizer, chat template, licence, ..."""

from __future__ import annotations

import shutil
from pathlib import Path

from longwave.exporters.source import Source
from longwave.files import read_json, write_json
from longwave.layout import CONFIG, GENERATION, TOKENIZER_CONFIG, TOKENIZER_FILES
from longwave.trajectory import Snapshot

# Code that would need trust_remote_code is not among them.
BESIDE = (
    *TOKENIZER_FILES, "*.model", GENERATION, "preprocessor_config.json", "video_preprocessor_config.json",
    "audio_tokenizer_config.json", "processor_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip


def code_notes(source: Source) -> list[str]:
    """A note for a model with Python code of its own. An export has no code: classes of transformers read it."""
    named = [
        path.name
        for path in (source.model / CONFIG, source.tokenizer / TOKENIZER_CONFIG)
        if path.is_file() and "auto_map" in read_json(path)
    ]
    return [f"{' and '.join(named)} named Python code (auto_map). The export leaves that code out."] if named else []


def copy_beside(source: Source, snapshot: Snapshot, folder: Path) -> None:
    """Tokenizer, generation config, chat template, licence; the tokenizer learns the new length."""
    for place in dict.fromkeys((source.model, source.tokenizer)):
        for pattern in BESIDE:
            for path in sorted(place.glob(pattern)):
                if path.is_file():
                    copy = folder / path.relative_to(place)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(path, copy)
    settings = folder / TOKENIZER_CONFIG
    if settings.is_file():
        kept = {key: value for key, value in read_json(settings).items() if key != "auto_map"}
        write_json(settings, {**kept, "model_max_length": snapshot.max_length})
    generation = folder / GENERATION
    if generation.is_file():  # a length of the model before would end texts early
        write_json(generation, {key: value for key, value in read_json(generation).items() if key != "max_length"})
