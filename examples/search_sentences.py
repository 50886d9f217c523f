"""Search real sentences with the original MiniLM and with a compressed file, side by side.

usage: search_sentences.py MODEL_FOLDER ONNX [SENTENCES.txt]

Without a file, the sentences are those of Python's own library (calibration_text.py).
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from calibration_text import sentences
from sentences import embed
from transformers import AutoModel, AutoTokenizer, logging

QUERIES = ("How do I read a file line by line?", "Compress data before sending it", "Wait until a thread has finished")
MOST, SHOWN, WIDTH = 1000, 3, 58


def main(folder: str, onnx: str, *texts: str) -> int:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    lines = Path(texts[0]).read_text(encoding="utf-8").splitlines() if texts else list(sentences())
    lines = lines[:: max(1, len(lines) // MOST)][:MOST]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    takes = [each.name for each in session.get_inputs()]

    def in_torch(tokens) -> np.ndarray:
        with torch.no_grad():
            return model(**tokens).last_hidden_state.numpy()

    def in_onnx(tokens) -> np.ndarray:
        return session.run(["last_hidden_state"], {name: tokens[name].numpy() for name in takes})[0]

    found = {}
    for name, run in (("original", in_torch), (Path(onnx).name, in_onnx)):
        library, asked = (embedded(tokenizer, run, each) for each in (lines, list(QUERIES)))
        found[name] = (asked @ library.T).argsort(1)[:, ::-1][:, :SHOWN]
    (first, before), (second, after) = found.items()
    for query, ours, theirs in zip(QUERIES, before, after, strict=True):
        print(f"\n{query}\n  {first:<{WIDTH}}  {second}")
        for a, b in zip(ours, theirs, strict=True):
            print(f"  {short(lines[a]):<{WIDTH}}  {short(lines[b])}")
    same = sum(len(set(a) & set(b)) for a, b in zip(before, after, strict=True))
    print(
        f"\n{same} of {before.size} answers of the original are the compressed model's, too; of {len(lines)} sentences"
    )
    return 0


def embedded(tokenizer, run, lines: list[str]) -> np.ndarray:
    """Embed lines in batches of alike lengths."""
    order = sorted(range(len(lines)), key=lambda i: len(lines[i]))
    parts = []
    for start in range(0, len(order), 64):
        chosen = [lines[i] for i in order[start : start + 64]]
        tokens = tokenizer(chosen, padding=True, truncation=True, max_length=128, return_tensors="pt")
        parts.append(embed(run(tokens), tokens["attention_mask"].numpy()))
    return np.concatenate(parts)[np.argsort(order)]


def short(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
