"""Which model types export to a Hugging Face folder, and how exactly: writes docs/exports.md.

    python runs/exports.py [--python VENV/bin/python]

Every causal-LM type of the installed transformers is built tiny, extended with a `clex` that has left its start and
with log-n, saved, exported at t = 4, and read by `--python`, which may be of an environment without longwave
(`pip install torch transformers`). About a minute on one core, no download.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/exporters")]

from families import Export, examine_exports  # noqa: E402
from tiny import model_types  # noqa: E402
from transformers.utils import logging  # noqa: E402

from longwave.io import write_text  # noqa: E402

PAGE = """# What exports to a Hugging Face folder

Written by `python runs/exports.py` with transformers {transformers} and torch {torch}, longwave {installed} where the
exports were read. Each type is built from its default config made tiny, extended with a `clex` that has left its
start and with log-n, exported at t = 4 and run on prompts of 40 and 200 tokens (L = 64). max |Δlogit| is against
longwave at the same t and the same constant log-n; the control is the same export with all factors 1.

{exported} types export; {zero} of them with a difference of exactly 0 and the same most likely token everywhere.

| type | max Δlogit | greedy tokens equal | control: max Δlogit | log-n |
|---|---|---|---|---|
{rows}

## Extended, but not exported

{refused}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that reads the exports")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/exports.md")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        found = examine_exports(model_types(), Path(scratch), arguments.python)
    write_text(arguments.output, page(found, arguments.python))


def page(found: list[Export], python: str) -> str:
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
    )


def _told(reason: str) -> str:
    return re.sub(r"of /\S+", "of its folder", reason)[:200]


if __name__ == "__main__":
    main()
