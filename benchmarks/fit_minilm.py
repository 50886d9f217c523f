"""How well and how fast MiniLM's 36 encoder matrices are fitted: error by shape beside the SVD of equal size.

usage: fit_minilm.py [STAGES ...]    (10 and 20 unless given)
"""

import statistics
import sys
import time
from collections import defaultdict

from real_models import ROOT, fetched

from spm_compress import CompressSettings, FitSettings, fit_model, open_source


def main(stages: list[int]) -> None:
    source = open_source(fetched("minilm"))
    print("| stages | shape | layers | kept | error | SVD of equal size | median ratio |")
    print("|---|---|---|---|---|---|---|")
    for count in stages:
        settings = CompressSettings(fit=FitSettings(stages=count), include=("encoder.*",))
        began = time.perf_counter()
        artifact = fit_model(source, settings, beside=ROOT)
        seconds = time.perf_counter() - began
        by_shape = defaultdict(list)
        for layer in artifact.layers:
            by_shape[layer.shape].append(layer)
        for (out, into), layers in by_shape.items():
            kept = layers[0].operator.parameter_count / (out * into)
            error = statistics.mean(layer.error for layer in layers)
            svd = statistics.mean(layer.svd_error for layer in layers)
            ratio = statistics.median(layer.error / layer.svd_error for layer in layers)
            print(f"| {count} | {out}x{into} | {len(layers)} | {kept:.1%} | {error:.3f} | {svd:.3f} | {ratio:.3f} |")
        print(f"\n{count} stages: {len(artifact.layers)} matrices in {seconds:.0f} s, SVDs and hashes included\n")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [10, 20])
