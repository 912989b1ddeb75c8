"""The names of files and folders: those that longwave writes, and those of a Hugging Face model."""

from __future__ import annotations

# A folder of `longwave.save` or `longwave train`. It has no config.json at its root: transformers would load the
# folder without the extension.
SETTINGS = "longwave.json"  # the extension
WEIGHTS = "longwave.safetensors"  # its weights, and the frequencies that it starts from
MODEL = "model"  # the folder of the plain model
ADAPTERS = "adapter"  # the folder of weights that follow t, as PEFT writes them
TRAINING = "training.json"  # settings, data and versions of the training
METRICS = "metrics.jsonl"  # a row for each optimizer step
EVALUATED = "eval.jsonl"  # a row for each measurement while the training went
LIVE_REPORT = "report.html"  # the page of a training, refreshed while it goes
TRACKED = "tensorboard"  # the folder of what TensorBoard shows
CHECKPOINTS = "checkpoints"  # the folder of the states of a training that has not ended

EXPORT_RECORD = "longwave-export.json"  # in a folder of `longwave export`, beside the files of its target
PROFILES = "rope_profiles"  # in config.json of an export for several t: what each t makes of the model
EXTENSION = "longwave"  # in such an export: the folder of the extension, by which longwave reads it

# A Hugging Face model, or a PEFT adapter.
CONFIG, ADAPTER, GENERATION = "config.json", "adapter_config.json", "generation_config.json"
TOKENIZER_CONFIG, TOKENIZER_JSON = "tokenizer_config.json", "tokenizer.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"  # weights in one file, or the list of several
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARIES = (*SENTENCEPIECE, "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
TOKENIZERS = (TOKENIZER_JSON, *VOCABULARIES)  # any of them makes a tokenizer
TOKENIZER_FILES = (  # what the tokenizers of transformers write
    *VOCABULARIES, "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "tokenizer.model.*", "emoji.json", "chat_template.*", "additional_chat_templates/*.jinja",
)  # fmt: skip
