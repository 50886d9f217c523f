"""A transformer-shaped model of many gigabytes, fitted in a process whose memory is watched.

The weights are bfloat16, random with columns that shrink as 1/sqrt(k), in shards of one layer; they are written to
build/big-GIB and kept there. Prints the peak memory beside 2 GB plus four times the largest matrix, and seconds.

usage: big_model.py [--gib 8] [--effort fast] [--jobs 1]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from real_models import ROOT
from safetensors.torch import save_file

WIDTH, HIDDEN, VOCABULARY = 4096, 11008, 32000
SHAPES = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (HIDDEN, WIDTH),
    "mlp.up_proj": (HIDDEN, WIDTH),
    "mlp.down_proj": (WIDTH, HIDDEN),
}
LAYER_BYTES = 2 * sum(m * n for m, n in SHAPES.values())
GIB = 2**30


def write(folder: Path, gib: float) -> int:
    """Write the model, if it is not there; return how many layers it has."""
    table = 2 * VOCABULARY * WIDTH
    layers = max(1, round((gib * GIB - table) / LAYER_BYTES))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return layers
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    files = {"model.embed_tokens.weight": "embedding.safetensors"}
    tokens = torch.randn(VOCABULARY, WIDTH, generator=draw).mul_(0.02).bfloat16()
    save_file({"model.embed_tokens.weight": tokens}, folder / "embedding.safetensors")
    fall = torch.arange(1, WIDTH + 1).float().rsqrt()
    for layer in range(layers):
        tensors = {}
        for name, (m, n) in SHAPES.items():
            # A random matrix whose columns, in a random order, shrink: no decomposition is needed for the decay.
            weight = torch.randn(m, n, generator=draw)
            side = fall[torch.randperm(WIDTH, generator=draw)]
            weight = weight * side if n == WIDTH else weight * side[:, None]
            tensors[f"model.layers.{layer}.{name}.weight"] = (weight * 0.05).bfloat16()
        file = f"layer-{layer:03d}.safetensors"
        save_file(tensors, folder / file)
        files |= dict.fromkeys(tensors, file)
    index.write_text(json.dumps({"weight_map": files}))
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=8)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--jobs", default="1")
    options = parser.parse_args()
    folder = ROOT / "build" / f"big-{options.gib:g}"
    layers = write(folder, options.gib)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    output = folder.parent / f"big-{options.gib:g}.spm.safetensors"
    command = [sys.executable, "-m", "spm_compress_cli", "fit", str(folder / "model.safetensors.index.json")]
    command += ["--effort", options.effort, "--jobs", options.jobs, "-o", str(output), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder.parent)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    allowed = 2 * 10**9 + 4 * 2 * VOCABULARY * WIDTH
    report = json.loads(done.stdout)
    print(f"model: {size / 1e9:.2f} GB, {layers} layers, {len(report['layers'])} matrices fitted")
    print(f"artifact: {output.stat().st_size / 1e9:.3f} GB; mean error {report['fitted']['mean_error']:.3f}")
    print(f"seconds: {seconds:.0f}, {seconds / len(report['layers']):.1f} a matrix")
    print(f"peak memory of the largest process: {peak / 1e9:.2f} GB, allowed {allowed / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
