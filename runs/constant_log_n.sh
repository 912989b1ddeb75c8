#!/usr/bin/env bash
# What an export loses by one t for all lengths and by a constant for per-query log-n: the table in docs/exporting.md,
# made with the commands a user has.
#
#   longwave demo --output DEMO
#   bash runs/constant_log_n.sh DEMO OUTPUT [WINDOWS] [TRIALS]
#
# May be killed and started again: what is there is kept, for these WINDOWS and TRIALS.
set -euo pipefail
demo=$1 output=$2 windows=${3:-128} trials=${4:-50}
lengths=1x,2x,4x,8x
own=$demo/clex-tuned
mkdir -p "$output"

export_to() { # FOLDER [more options]
  [ -e "$1/longwave-export.json" ] || longwave export "$own" --factor 8 --output "$1" "${@:2}"
}

measure() { # MODEL RESULTS [more options]
  [ -e "$2/perplexity/perplexity.json" ] || longwave perplexity "$1" --data "$demo/text/heldout.jsonl" \
    --lengths $lengths --windows "$windows" --output "$2/perplexity" "${@:3}"
  [ -e "$2/passkey/passkey.json" ] || longwave passkey "$1" \
    --lengths $lengths --trials "$trials" --output "$2/passkey" "${@:3}"
}

results=$output/windows-$windows-trials-$trials
export_to "$output/constant" --log-n constant
export_to "$output/drop" --log-n drop
measure "$own" "$results/own" --methods clex,clex@static=8
measure "$output/constant" "$results/constant"
measure "$output/drop" "$results/drop"

python - "$results" <<'PY'
import pathlib, sys
from longwave.evaluation.results import read

folder = pathlib.Path(sys.argv[1])
names = {
    "own": ("longwave, `t` follows the length", "`t` = 8, per-query log-n"),
    "constant": ("`t` = 8, constant (the default export)",),
    "drop": ("`t` = 8, no log-n (`--log-n drop`)",),
}
for place, labels in names.items():
    perplexity = read(folder / place / "perplexity/perplexity.json")["rows"]
    passkey = read(folder / place / "passkey/passkey.json")["rows"]
    for label, row, found in zip(labels, perplexity, passkey, strict=True):
        cells = [f"{entry['ppl']:.2f}" for entry in row["lengths"]]
        cells += [f"{entry['rate']:.0%}".replace("%", " %") for entry in found["lengths"]]
        print("| " + " | ".join([label, *cells]) + " |")
PY
