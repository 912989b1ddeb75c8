"""CTranslate2: its own converter for the weights, the factors in its `Su` rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longwave.errors import install
from longwave.exporters.base import Answer, EngineMissing, Exporter, Plan

if TYPE_CHECKING:
    from longwave.exporters.source import Source
    from longwave.trajectory import Snapshot


class CTranslate2(Exporter):
    """Folder with `model.bin`, `config.json` and `vocabulary.json`, and the tokenizer's files beside them.

    The converter holds the whole model in memory, unlike other targets: that is the library's way.
    """

    name = "ctranslate2"
    summary = "a folder for CTranslate2, whose converter holds the whole model in memory"
    library = "ctranslate2"
    quantizations: tuple[str, ...] = (
        "keep", "float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16",
    )  # fmt: skip
    merges = True

    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        from longwave.exporters.ctranslate2.plan import plan_conversion

        self.engine()
        return plan_conversion(source, snapshot, str(self.quantization(quantize)))

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        return f"""`pip install ctranslate2 transformers`, then

```python
import ctranslate2, transformers

tokenizer = transformers.AutoTokenizer.from_pretrained("{folder}")
generator = ctranslate2.Generator("{folder}", device="cpu")  # or "cuda"
tokens = tokenizer.convert_ids_to_tokens(tokenizer("Once upon a time").input_ids)
[result] = generator.generate_batch([tokens], max_length=64, include_prompt_in_result=False)
print(tokenizer.decode(result.sequences_ids[0]))
```

Prompt and answer may have {snapshot.max_length} tokens together; the engine does not check that. Compute types of 16
bits, which only GPUs have, may round its frequencies: compare `compute_type="float32"` there.
"""

    def engine(self) -> str:
        try:
            import ctranslate2
        except ImportError:
            raise EngineMissing(f"ctranslate2 is not installed. Run: {install('ctranslate2')}.") from None
        return f"ctranslate2 {ctranslate2.__version__}"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        from longwave.exporters.ctranslate2.engine import run_generator

        self.engine()
        return run_generator(folder, prompts, new_tokens)
