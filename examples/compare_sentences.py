"""Run an exported MiniLM in ONNX Runtime on real sentences, beside torch with SPM layers and the original.

usage: compare_sentences.py MODEL_FOLDER ARTIFACT ONNX
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sentences import SENTENCES, embed
from transformers import AutoModel, AutoTokenizer, logging

from spm_compress import apply_artifact, read_artifact


def main(folder: str, artifact: str, onnx: str) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].numpy()
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        original = embed(model(**tokens).last_hidden_state.numpy(), mask)
        apply_artifact(model, read_artifact(Path(artifact)))
        in_torch = embed(model(**tokens).last_hidden_state.numpy(), mask)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    (features,) = session.run(["last_hidden_state"], {name: value.numpy() for name, value in tokens.items()})
    in_onnx = embed(features, mask)

    difference = np.abs(in_onnx - in_torch).max()
    cosine = (in_onnx * original).sum(1)
    print(f"embeddings of {len(SENTENCES)} sentences, ONNX Runtime against torch with SPM layers:")
    print(f"  largest difference {difference:.1e}")
    print("compressed against original, before any recovery:")
    print(f"  cosine of each sentence with its original: mean {cosine.mean():.3f}, least {cosine.min():.3f}")
    pairs = np.triu_indices(len(SENTENCES), 1)
    correlation = np.corrcoef((in_onnx @ in_onnx.T)[pairs], (original @ original.T)[pairs])[0, 1]
    print(f"  correlation of the {len(pairs[0])} pairwise similarities: {correlation:.3f}")
    if difference > 1e-4:
        print("error: ONNX Runtime and torch disagree", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
