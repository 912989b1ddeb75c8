"""The Hugging Face folder: a plain checkpoint whose config carries the frequencies.

`rope_type: longrope` with the same factors for short and long sequences, and as original length the full one, is
one fixed set of frequencies for transformers, vLLM and SGLang alike: θ_i = 1/(λ_i·b^(2i/d)). Its defaults differ
between the engines, so nothing is left to them: transformers reads `attention_factor`, vLLM and SGLang
`short_mscale` and `long_mscale`, each with a rule of its own where the key is missing.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.weights import copy_weights
from longwave.exporters.base import ROUNDING, Answer, partial_heads, stored_type, weight_notes
from longwave.exporters.source import Source
from longwave.extensions.sites import find_sites
from longwave.extensions.standin import frequency_name
from longwave.files import read_json, write_json
from longwave.trajectory import Snapshot

KEPT = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
# What a scaling that the model was trained with is made of: it is in the factors and the attention scaling now.
REPLACED = (
    "rope_type", "type", "factor", "short_factor", "long_factor", "attention_factor", "beta_fast", "beta_slow",
    "mscale", "truncate", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "short_mscale", "long_mscale", "finetuned",
)  # fmt: skip
# What belongs to a checkpoint beside its weights; code that would need trust_remote_code does not.
BESIDE = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "*.model", "tokenizer.model.*", "*.tiktoken", "tekken.json", "emoji.json", "chat_template.*",
    "additional_chat_templates/*.jinja", "generation_config.json", "preprocessor_config.json",
    "video_preprocessor_config.json", "audio_tokenizer_config.json", "processor_config.json", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
)  # fmt: skip
LENGTHS = ("max_position_embeddings", "model_max_length", "max_sequence_length", "seq_length", "max_seq_len")
TOKENIZER_SETTINGS = "tokenizer_config.json"
RUNNER = Path(__file__).with_name("run_transformers.py")


class HF:
    """Loads in vanilla transformers with the logits of `longwave.frozen`, bit for bit."""

    name = "hf"
    summary = "a Hugging Face folder for transformers, vLLM and SGLang"
    quantizations: tuple[str, ...] = ()

    def check(self, source: Source, snapshot: Snapshot) -> list[str]:
        """Try the config on a model without weights: some families read no `longrope`, or read it otherwise."""
        reason = _unknown_key(source) or _misread(source, snapshot)
        if reason:
            raise ValueError(f"{source.model_type} cannot express these frequencies in a transformers config: {reason}")
        notes = [*weight_notes(source, kept=True), *code_notes(source), *partial_heads(source, snapshot)]
        if source.rotary.layer_type is not None:
            notes.append(
                f"{source.model_type} has one rope for each layer type: transformers reads that, vLLM and SGLang may "
                "not."
            )
        if is_interleaved(source):
            notes.append(
                f"{source.model_type} rotates neighbouring dimensions (interleaved): vLLM and SGLang refuse longrope "
                "for such models, transformers runs it."
            )
        return notes

    def write(self, source: Source, snapshot: Snapshot, folder: Path, quantize: str | None) -> None:
        copy_weights(source.model, folder, source.dropped)
        copy_beside(source, snapshot, folder)
        write_json(folder / "config.json", hf_config(source, snapshot))

    def size(self, source: Source, quantize: str | None) -> int:
        return sum(path.stat().st_size for path in source.shards)

    def tolerance(self, source: Source, quantize: str | None) -> float | None:
        """For another build or other numbers of threads, that is: here the difference is 0."""
        return ROUNDING.get(stored_type(source), 1.0) / 100

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        length = snapshot.max_length
        return f"""```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("{folder}")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```

```bash
vllm serve {folder} --max-model-len {length}
python -m sglang.launch_server --model-path {folder} --context-length {length}
```

No flag for RoPE is needed: the factors are in config.json. transformers warns of the keys `short_mscale` and
`long_mscale`, which it does not know: they are for vLLM and SGLang."""

    def engine(self) -> str:
        return f"transformers {version('transformers')}"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """In a process of its own, which imports transformers and no longwave."""
        return run_transformers(folder, prompts, new_tokens)


def run_transformers(
    folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int, python: str = sys.executable
) -> list[Answer]:
    """Greedy continuations by the transformers of any Python."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "prompts.json", Path(scratch) / "answers.npz"
        write_json(asked, [list(prompt) for prompt in prompts])
        done = subprocess.run(
            [python, str(RUNNER), str(folder), str(asked), str(answered), str(new_tokens)],
            capture_output=True,
            text=True,
            cwd=scratch,
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # the script's own folder has a gguf.py and a ctranslate2.py
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ValueError(f"transformers could not run {folder}: {last}")
        with np.load(answered) as found:
            return [
                Answer(found[f"tokens{index}"].tolist(), found[f"log_probs{index}"]) for index in range(len(prompts))
            ]


def hf_config(source: Source, snapshot: Snapshot) -> dict[str, Any]:
    """config.json with the snapshot's frequencies, in the one form that every engine reads the same way."""
    config: dict[str, Any] = {**source.config}
    config.pop("auto_map", None)
    text = _text_part(source, config)
    length = snapshot.max_length
    old, kept = _ropes(source, text)
    layer_type = source.rotary.layer_type
    theta = source.rotary.trajectory.rope.base
    scaling = snapshot.attention_scaling
    factors = snapshot.factors.tolist()
    rope = {
        **{key: kept[key] for key in KEPT if key in kept},
        "rope_type": "longrope",
        "rope_theta": theta,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "original_max_position_embeddings": length,
        "attention_factor": scaling,
        "short_mscale": scaling,
        "long_mscale": scaling,
    }
    if source.head_dim is not None and not source.rotates_whole_heads and "qk_nope_head_dim" not in text:
        # configs of transformers 4 say it in other places, where vLLM and SGLang do not look
        rope.setdefault("partial_rotary_factor", snapshot.rotary_dim / source.head_dim)
    text.pop("rope_scaling", None)
    if layer_type is not None:
        text["rope_parameters"] = {**_per_layer_type(source, old), layer_type: rope}
    else:
        text["rope_parameters"] = rope
        text["rope_scaling"], text["rope_theta"] = rope, theta  # where transformers 4 and engines of its time look
    if source.contents.untied:  # vLLM and SGLang take config.json at its word
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    text |= {key: length for key in LENGTHS if key in text or key == "max_position_embeddings"}
    if "head_dim" in text and text["head_dim"] is None:  # longrope takes the key at its word (Mixtral)
        text["head_dim"] = source.head_dim
    if "original_max_position_embeddings" in text:
        text["original_max_position_embeddings"] = length
    record = {
        "method": source.method,
        "factor": snapshot.factor,
        "original_length": snapshot.original_length,
        "length": length,
        "attention_scaling": source.own_scaling,
        "log_n_constant": source.log_n_constant(snapshot),
    }
    pretrained = source.rotary.trajectory.rope.factors
    if not bool((pretrained == 1).all()):
        record["short_factor"] = pretrained.tolist()
    config["longwave"] = record  # for `longwave.load`; engines pass over it
    return config


def code_notes(source: Source) -> list[str]:
    """Which files name Python code of their own: an export has none, and transformers' own classes read it."""
    named = [
        path.name
        for path in (source.model / "config.json", source.tokenizer / TOKENIZER_SETTINGS)
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
    settings = folder / TOKENIZER_SETTINGS
    if settings.is_file():
        kept = {key: value for key, value in read_json(settings).items() if key != "auto_map"}
        write_json(settings, {**kept, "model_max_length": snapshot.max_length})
    generation = folder / "generation_config.json"
    if generation.is_file():  # a length of the model before would end texts early
        write_json(generation, {key: value for key, value in read_json(generation).items() if key != "max_length"})


def is_interleaved(source: Source) -> bool:
    """Whether pairs are dimensions (2i, 2i+1), as its `rotate_half` says, instead of (i, i + d/2)."""
    module = sys.modules[type(source.rotary.base).__module__]
    rotate = getattr(module, "rotate_half", None)
    return rotate is None or bool(re.search(r"\[\.\.\., *(0|1)?::2\]", inspect.getsource(rotate)))


def _text_part(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """The part of the config, copied, that describes the text model: all of it, or a section of a multimodal one."""
    whole, text = source.skeleton.config, source.text_config
    if text is whole:
        return config
    name = next(name for name in whole.sub_configs if getattr(whole, name, None) is text)
    config[name] = {**config.get(name, {})}
    part: dict[str, Any] = config[name]
    return part


def _ropes(source: Source, text: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`rope_parameters` as the config has them, and those of the layers that are extended."""
    old = text.get("rope_parameters") or text.get("rope_scaling") or {}
    own = old.get(source.rotary.layer_type) if source.rotary.layer_type is not None else None
    return old, own if isinstance(own, dict) else old


def _unknown_key(source: Source) -> str | None:
    """Keys that other code than the rotary module reads, and may read otherwise beside `longrope`."""
    _, own = _ropes(source, _text_part(source, {**source.config}))
    unknown = [
        key for key, value in own.items() if key not in KEPT + REPLACED and value and not isinstance(value, dict)
    ]
    return f"its attention depends on {unknown[0]} of rope_parameters, too." if unknown else None


def _per_layer_type(source: Source, old: dict[str, Any]) -> dict[str, Any]:
    """The ropes of the other layer types as they were, written out where the config left them to defaults."""
    ropes = source.text_config.rope_parameters
    return {name: dict(rope) for name, rope in ropes.items() if isinstance(rope, dict)} | {
        name: rope for name, rope in old.items() if isinstance(rope, dict)
    }


def _misread(source: Source, snapshot: Snapshot) -> str | None:
    """What a plain model built from the new config has that it should not; None if all is as meant."""
    with tempfile.TemporaryDirectory() as scratch:
        write_json(Path(scratch) / "config.json", hf_config(source, snapshot))
        try:
            model = skeleton(Path(scratch))
            sites = find_sites(model)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    rope = source.rotary.trajectory.rope
    wanted, scaling = 1.0 / (snapshot.factors * rope.powers), snapshot.attention_scaling
    for site in sites:
        found = getattr(site.module, frequency_name(site.layer_type))
        if not torch.equal(found, wanted):
            return "its rotary module computes others from the factors."
        if getattr(site.module, frequency_name(site.layer_type, "attention_scaling"), 1.0) != scaling:
            return f"its rotary module takes no attention scaling of {scaling:.4f}."
    return None
