#!/usr/bin/env bash
# Extend two small public checkpoints 16 times and measure them before and after, with the commands a user has.
#
#   bash runs/checkpoints.sh CHECKPOINT TRAIN.txt HELDOUT.txt OUTPUT [LENGTH]
#
# CHECKPOINT is a folder with a TinyStories Llama (for example karpathy/llama2.c's stories260K, L = 512, or
# EN10/BabyLlama's tok105, L = 256, converted to the Hugging Face format); the texts are TinyStories.
set -euo pipefail
model=$1 train=$2 heldout=$3 output=$4 length=${5:-256}
mkdir -p "$output"

# As these models were trained: a story in one line, each after the beginning-of-text token.
for split in train heldout; do
  python - "${!split}" "$output/$split.txt" <<'PY'
import pathlib, sys
stories = pathlib.Path(sys.argv[1]).read_text("utf-8").split("<|endoftext|>")
pathlib.Path(sys.argv[2]).write_text("<s>".join(" ".join(s.split()) for s in stories if s.strip()), "utf-8")
PY
done

lengths=1x,2x,4x,8x,16x
longwave perplexity "$model" --data "$output/heldout.txt" --lengths $lengths --windows 512 \
  --methods none,linear,ntk,yarn --output "$output/before" --overwrite
for method in ntk clex; do
  longwave train "$model" --data "$output/train.txt" --train-length "$length" --max-factor 16 \
    --method $method --log-n 1 --lr 1e-3 --chunks 8 --short-share 0.1 --batch-size 16 --steps 256 \
    --output "$output/$method" --resume
  longwave perplexity "$output/$method" --data "$output/heldout.txt" --lengths $lengths --windows 512 \
    --output "$output/after-$method" --overwrite
done
