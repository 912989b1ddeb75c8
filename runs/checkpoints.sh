#!/usr/bin/env bash
# Extend a small public checkpoint 16 times and measure it before and after, with the commands a user has.
#
#   bash runs/checkpoints.sh CHECKPOINT TRAIN.txt HELDOUT.txt OUTPUT LENGTH [WINDOWS]
#
# CHECKPOINT is a folder with a TinyStories Llama of trained length LENGTH (karpathy/llama2.c's stories260K, 512, or
# EN10/BabyLlama's tok105, 256, converted to the Hugging Face format); the texts are TinyStories. May be killed and
# started again: what is there is kept.
set -euo pipefail
model=$1 train=$2 heldout=$3 output=$4 length=$5 windows=${6:-64}
mkdir -p "$output"

# As these models were trained: a story in one line, each after the beginning-of-text token.
for split in train heldout; do
  python - "${!split}" "$output/$split.txt" <<'PY'
import pathlib, sys
stories = pathlib.Path(sys.argv[1]).read_text("utf-8").split("<|endoftext|>")
pathlib.Path(sys.argv[2]).write_text("<s>".join(" ".join(s.split()) for s in stories if s.strip()), "utf-8")
PY
done

results=$output/windows-$windows
measure() { # MODEL RESULTS [more options]
  [ -e "$2/perplexity.json" ] || longwave perplexity "$1" --data "$output/heldout.txt" \
    --lengths 1x,2x,4x,8x,16x --windows "$windows" --output "$2" "${@:3}"
}

for method in clex ntk; do
  longwave train "$model" --data "$output/train.txt" --train-length $((16 * length)) --row-length "$length" \
    --max-factor 16 --method $method --lr 2e-4 --field-lr 3e-3 --chunks 8 --short-share 0.3 --long-share 0.6 --log-n 1 \
    --batch-size 16 --steps 256 --output "$output/$method" --resume
  measure "$output/$method" "$results/after-$method"
done
measure "$model" "$results/before" --methods none,linear,ntk,yarn

python - "$results" <<'PY'
import pathlib, sys
from longwave.evaluation.results import read

def show(label, cells):
    print(f"| {label} | " + " | ".join(cells) + " |")

folder = pathlib.Path(sys.argv[1])
for part, when in (("before", "training-free"), ("after-ntk", "fine-tuned"), ("after-clex", "fine-tuned")):
    record = read(folder / part / "perplexity.json")
    for row in record["rows"]:
        if part == "before" and row["label"] == "none":
            show("row", [f"{entry['length'] // record['original_length']}x" for entry in row["lengths"]])
            show("---", ["---"] * len(row["lengths"]))
        values = [f"{entry['ppl']:.3g} [{entry['interval'][0]:.3g}, {entry['interval'][1]:.3g}]" for entry in row["lengths"]]
        show(f"{row['label']}, {when}" if row["label"] != "none" else "unscaled", values)
PY
