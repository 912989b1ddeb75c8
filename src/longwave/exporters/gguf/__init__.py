"""GGUF, for llama.cpp and what is built on it: one file with the factors beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longwave.errors import install
from longwave.exporters.base import Answer, EngineMissing, Exporter, Plan
from longwave.exporters.gguf import llamacpp

if TYPE_CHECKING:
    from longwave.exporters.source import Source
    from longwave.trajectory import Snapshot


class GGUF(Exporter):
    """Frequency factors as the tensor that llama.cpp knows from Llama 3.1, which conversion scripts leave out."""

    name = "gguf"
    summary = "one file for llama.cpp, Ollama and LM Studio"
    library = "gguf"
    quantizations: tuple[str, ...] = ("f16", "f32", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
    merges = True

    def plan(self, source: Source, snapshot: Snapshot, quantize: str | None = None) -> Plan:
        from longwave.exporters.gguf.plan import plan_file

        return plan_file(source, snapshot, str(self.quantization(quantize)))

    def serving(self, source: Source, snapshot: Snapshot, folder: str) -> str:
        length, file = snapshot.max_length, f"{folder}/model-*.gguf"
        return f"""### llama.cpp

```
llama-server -m {file} -c {length} --port 8080
llama-cli -m {file} -c {length} -f prompt.txt
```

The file carries the frequencies: no `--rope-*` or `--yarn-*` option is needed, and none should be given. They are the
same for every length up to {length} tokens."""

    def engine(self) -> str:
        found = llamacpp.installed()
        if found is None:
            raise EngineMissing(f"llama.cpp is not installed here. Run: {install('llamacpp')}.")
        return f"llama.cpp (xllamacpp {found})"

    def run(self, folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
        from longwave.exporters.gguf.engine import run_server

        self.engine()
        return run_server(folder, prompts, new_tokens)
