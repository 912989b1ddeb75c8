"""Measure which model types an extension attaches to, and write docs/architectures.md.

    python runs/architectures.py

Every causal-LM type of the installed transformers is built from its default config made tiny (tests/tiny.py)
and examined (tests/zoo.py). About a minute on one core, no download.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny import model_types  # noqa: E402
from zoo import Finding, examine  # noqa: E402

from longwave.files import write_text  # noqa: E402

PAGE = """# Which models can be extended

`python runs/architectures.py` wrote this page with transformers {transformers} and torch {torch}.
It took {types} causal-LM types and built a tiny model of each type from the default config. It extended the model with
`clex`, ran it at t = 1 and t = 2, and restored it. The slow test `tests/test_every_model.py` repeats the measurement.

| of {types} types | number |
|---|---|
| build and run from a tiny config | {built} |
| extended | {attached} |
| logits bitwise those of the plain model at t = 1 and after `restore` | {exact} |
| gradient reaches the field at t = 2 | {gradient} |
| per-query log-n, exact within L | {log_n} |
| an attention method (`two-band`): exact within L, cached as without a cache | {bands} |

A model that owns a rotary module needs no code in longwave. `extend` runs the module's own forward on other
frequencies. Layout, partial rotation, multi-axis positions and attention scaling stay as the model has them. Some
models have one set of frequencies per layer type (Gemma 3): their sliding-window layers keep their frequencies. The few
models that need a line of code have it in `src/longwave/extensions/sites.py`.

## Extended

{extended}

## Extended, without per-query log-n

`extend` with log-n is refused, with the reason. `extend` with `log_n=False` works.

{without_log_n}

## Extended, without attention methods

`extend` with an attention method is refused, with the reason. A scaling method alone works.

{without_bands}

## Refused: no rotary module

{refused}

## Not measured: no tiny model

{unbuilt}
"""


def main() -> None:
    transformers.logging.set_verbosity_error()
    findings = []
    types = model_types()
    for number, model_type in enumerate(types, 1):
        findings.append(examine(model_type))
        print(f"{number}/{len(types)} {model_type}: {findings[-1].reason or 'ok'}", flush=True)
    write_text(ROOT / "docs" / "architectures.md", page(findings))


def page(findings: list[Finding]) -> str:
    counts = {
        name: sum(getattr(finding, name) for finding in findings)
        for name in ("built", "attached", "exact", "gradient", "log_n", "bands")
    }
    extended = ", ".join(f"`{f.model_type}`" for f in findings if f.attached and f.log_n)
    return PAGE.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        types=len(findings),
        extended=extended,
        without_log_n=_by_reason([f for f in findings if f.attached and not f.log_n]),
        without_bands=_by_reason([replace(f, reason=f.without_bands) for f in findings if f.attached and not f.bands]),
        refused=_by_reason([f for f in findings if f.built and not f.attached]),
        unbuilt=_by_reason([f for f in findings if not f.built]),
        **counts,
    )


def _by_reason(findings: list[Finding]) -> str:
    """A list of reasons, each with the types that it stops."""
    types: dict[str, list[str]] = {}
    for finding in findings:
        types.setdefault(_short(finding.reason), []).append(f"`{finding.model_type}`")
    return "\n".join(f"- {reason}: {', '.join(names)}" for reason, names in sorted(types.items()))


def _short(reason: str) -> str:
    """What the error says about the type, without its class name and its advice."""
    reason = reason.removeprefix("ValueError: ").removeprefix("StrictDataclassClassValidationError: ")
    if match := re.search(r"it has (.*?)\. Choose", reason):
        return match[1]
    if "hands no position_ids" in reason:
        return "the attention interface gets no position ids"
    if match := re.search(r"cannot have (?:log-n scaling|an attention method): (.*?)\. (?:Pass|Choose)", reason):
        return match[1].replace("its attention does", "attention does")
    return reason


if __name__ == "__main__":
    main()
