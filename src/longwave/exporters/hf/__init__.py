"""The Hugging Face folder: a plain checkpoint whose config carries the frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from longwave.exporters.base import Answer, Exporter, Plan

if TYPE_CHECKING:
    from longwave.exporters.source import Source
    from longwave.trajectory import Snapshot


class HF(Exporter):
    """Loads in vanilla transformers with the logits of `longwave.frozen`, bit for bit."""

    name = "hf"
    summary = "a Hugging Face folder for transformers, vLLM and SGLang"
    library = "transformers"
    general = True
    exact = True
    merges = True
    quantizations = ("keep", "float32")

    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        from longwave.exporters.hf.plan import plan_folder

        return plan_folder(source, snapshot, wide=self.quantization(quantize) == "float32")

    def plan_profiles(self, source: Source, factors: Sequence[float]) -> Plan:
        from longwave.exporters.hf.profiles import plan_profiles

        return plan_profiles(source, factors)

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

    def serving_profiles(self, folder: str) -> str:
        return f"""```bash
pip install --no-deps longwave    # beside vLLM, which finds the plugin by itself
longwave serve {folder}
```

Every request runs at the least length factor that its prompt and its answer need. Texts within the trained length run
on the plain model, bit for bit. An engine without the plugin serves the plain model, and refuses longer texts."""

    def engine(self) -> str:
        return f"transformers {version('transformers')}"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        """In a process of its own, which imports transformers and no longwave."""
        from longwave.exporters.hf.engine import run_transformers

        return run_transformers(folder, prompts, new_tokens)
