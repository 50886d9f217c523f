#!/bin/sh
# The main job, end to end, on all-MiniLM-L6-v2: 91 MB of float32 to 13.5 MB that find the same sentences.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
model=$(python "$here/fetch_model.py" minilm)
work=$(dirname "$model")/demo
mkdir -p "$work"
cd "$work"
rm -f ./*.spm.safetensors ./*.onnx

say() { printf '\n$ %s\n' "$*"; "$@"; }

python "$here/calibration_text.py" 1000 > texts.txt
say spm-compress compress "$model" -o minilm.onnx --budget 13.5MB --calibration texts.txt
say python "$here/search_sentences.py" "$model" minilm.onnx
