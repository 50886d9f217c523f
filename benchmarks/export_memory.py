"""How much memory the export of a decoder takes: a Llama of 135 M random numbers, its lowerings timed anew each time.

The model and the artifact of a two-step fit are kept in build/llama-135m. Prints the peak resident memory of each
process of `spm-compress export` beside the bytes of the weights.

usage: export_memory.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from real_models import ROOT

COMMAND = [sys.executable, "-m", "spm_compress_cli"]


def write(folder: Path) -> None:
    """Write the model and fit it, where that is not done."""
    if (folder / "model.spm.safetensors").exists():
        return
    # In a process of its own: the peak of a child is never below what its parent held when it was started.
    program = (
        "import sys, torch, transformers; torch.manual_seed(0);"
        "config = transformers.LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, "
        "num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True);"
        "transformers.LlamaForCausalLM(config).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, folder / "model"], check=True)
    fit = ["fit", "model", "--steps", "2", "--effort", "fast", "--quiet", "-o", "model.spm.safetensors"]
    subprocess.run([*COMMAND, *fit], check=True, cwd=folder, stdout=subprocess.DEVNULL)


def peak_of_export(folder: Path) -> int:
    """Return the bytes that an export held at most, which remembers no times of an earlier one."""
    arguments = ["export", "model.spm.safetensors", "--onnx", "out.onnx", "--batch", "1", "--sequence", "16"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "XDG_CACHE_HOME": cache}
        process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the export ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    folder = ROOT / "build" / "llama-135m"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    size = (folder / "model" / "model.safetensors").stat().st_size
    for _ in range(options.repeats):
        peak = peak_of_export(folder)
        print(f"peak {peak / 1e9:.2f} GB, {peak / size:.2f} times the weights' {size / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
