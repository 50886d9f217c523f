#!/bin/sh
# The command line, end to end, on all-MiniLM-L6-v2: fit its 36 encoder matrices, report, export, time, run.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=$(python "$here/fetch_model.py" minilm)
work=$(dirname "$model")/demo
mkdir -p "$work"
cd "$work"
rm -f ./*.spm.safetensors ./*.onnx

say() { printf '\n$ %s\n' "$*"; "$@"; }

say spm-compress fit "$model" --include 'encoder.*' --stages 10
say spm-compress report
say spm-compress export --onnx minilm.onnx --dense dense.onnx --batch 1,16 --threads 1
say spm-compress bench minilm.onnx --against dense.onnx --batch 1,16 --sequence 16,128 --seconds 3
say python "$here/compare_sentences.py" "$model" minilm.spm.safetensors minilm.onnx
