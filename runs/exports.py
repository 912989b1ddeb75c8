"""Which model types export to which engine, and how exactly: writes docs/exports.md.

    python runs/exports.py [--python VENV/bin/python]

Every causal-LM type of the installed transformers is built tiny, extended with a `clex` that has left its start and
with log-n, saved, exported at t = 4, and read by `--python`, which may be of an environment without longwave
(`pip install torch transformers`). Some of them go to llama.cpp and CTranslate2, too, where those are installed
(the extras `llamacpp` and `ctranslate2`). Three minutes on one core, no download.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/exporters")]

from engines import Run, run_engines  # noqa: E402
from families import Export, examine_exports  # noqa: E402
from tiny import model_types  # noqa: E402
from transformers.utils import logging  # noqa: E402

from longwave.exporters import EXPORTERS  # noqa: E402
from longwave.files import write_text  # noqa: E402

PAGE = """# What exports, and how exactly

## To a Hugging Face folder

Written by `python runs/exports.py` with transformers {transformers} and torch {torch}, longwave {installed} where the
exports were read. Each type is built from its default config made tiny, extended with a `clex` that has left its
start and with log-n, exported at t = 4 and run on prompts of 40 and 200 tokens (L = 64). max |Δlogit| is against
longwave at the same t and the same constant log-n; the control is the same export with all factors 1.

{exported} types export; {zero} of them with a difference of exactly 0 and the same most likely token everywhere.

| type | max Δlogit | greedy tokens equal | control: max Δlogit | log-n |
|---|---|---|---|---|
{rows}

Extended, but not exported:

{refused}

## To other engines

Types of small random models under `clex` (random field, log-n), `yarn` and `ntk` at t = 4 (L = 64), weights in float32,
three prompts of 100 to 248 tokens of text, eight greedy tokens after each. A cell: greedy tokens equal to longwave's at
the same t and the same constant log-n, and the largest |Δ log-probability|, over all methods that the engine can
express. Control: equal tokens under `clex` with all factors 1.

{engines}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that reads the exports")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/exports.md")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        found = examine_exports(model_types(), Path(scratch), arguments.python)
        exporters = [exporter for exporter in EXPORTERS.values() if not exporter.exact]
        runs = list(run_engines(exporters, Path(scratch) / "engines"))
    write_text(arguments.output, page(found, runs, arguments.python))


def page(found: list[Export], runs: list[Run], python: str) -> str:
    ask = (
        "import importlib.util as u, torch, transformers as t; "
        "print(t.__version__, torch.__version__, u.find_spec('longwave') is None)"
    )
    transformers, torch, absent = subprocess.run(
        [python, "-c", ask], capture_output=True, text=True, check=True
    ).stdout.split()
    exported = [export for export in found if export.difference is not None]
    rows = [
        f"| `{e.model_type}` | {e.difference:.2g} | {'yes' if e.greedy else 'no'} | {e.control:.2g} | "
        f"{'yes' if e.log_n else 'no'} |"
        for e in exported
    ]
    refused = [e for e in found if e.difference is None and e.extended]
    return PAGE.format(
        transformers=transformers,
        torch=torch,
        installed="not installed" if absent == "True" else "installed but not imported",
        exported=len(exported),
        zero=sum(e.difference == 0 and e.greedy for e in exported),
        rows="\n".join(rows),
        refused="\n".join(f"- `{e.model_type}`: {_told(e.reason)}" for e in refused) or "none",
        engines="\n\n".join(filter(None, (table(runs, target) for target in dict.fromkeys(r.target for r in runs)))),
    )


def table(runs: list[Run], target: str) -> str:
    own = [run for run in runs if run.target == target]
    if not own[0].model_type:
        return f"{target}: not measured, {own[0].reason}"
    ran = [run.agreement for run in own if run.agreement is not None]
    lines = [
        f"{ran[0].engine}:",
        "",
        "| type | methods | tokens equal | max Δlog p | control |",
        "|---|---|---|---|---|",
    ]
    refused: dict[str, list[str]] = {}
    for model_type in dict.fromkeys(run.model_type for run in own):
        done = [run for run in own if run.model_type == model_type and run.agreement is not None]
        if not done:
            reason = next(run.reason for run in own if run.model_type == model_type)
            told = reason.replace(model_type, "them").split(". ")[0].rstrip(".")
            refused.setdefault(told, []).append(f"`{model_type}`")
            continue
        agreements = [run.agreement for run in done if run.agreement is not None]
        control = next((run.control for run in done if run.control is not None), None)
        lines.append(
            f"| `{model_type}` | {', '.join(run.method for run in done)} | {sum(a.equal for a in agreements)} of "
            f"{sum(a.total for a in agreements)} | {max(a.max_difference or 0 for a in agreements):.1g} | "
            f"{'–' if control is None else f'{control.equal} of {control.total}'} |"
        )
    lines += ["", "Refused:", ""] + [f"- {', '.join(types)}: {reason}" for reason, types in refused.items()]
    return "\n".join(lines)


def _told(reason: str) -> str:
    """The reason without the folder of this run, which is gone when the page is read."""
    told = re.sub(r"/\S+/config\.json", "its config.json", re.sub(r"of /\S+", "of its folder", reason))
    return textwrap.shorten(told, 200, placeholder=" ...")


if __name__ == "__main__":
    main()
