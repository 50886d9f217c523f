"""Lines of text as pictures for PP-OCR's recognition, and the character errors of a model on them.

usage: text_lines.py draw          writes train.npz (1,000 lines), test.npz (200) and test.txt, what test.npz says
       text_lines.py judge MODEL   prints the character error rate of an .onnx file on test.npz, blanks not counted

Drawn with Pillow in the fonts that Debian's fonts-dejavu-core, fonts-dejavu-extra and fonts-liberation install.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from real_models import fetched, sentences

_FONTS = ("dejavu/DejaVuSans", "dejavu/DejaVuSerif", "liberation/LiberationSans-Regular", "dejavu/DejaVuSansMono")
_TRAIN, _TEST = 1000, 200


def draw() -> None:
    from PIL import Image, ImageDraw, ImageFont  # comes with matplotlib

    files = [f"/usr/share/fonts/truetype/{name}.ttf" for name in _FONTS]
    fonts = [ImageFont.truetype(file, size) for file in files for size in (26, 30)]
    chosen = random.Random(0)
    pictures, texts = [], []
    for sentence in sentences(_TRAIN + _TEST):
        words = sentence.split()
        text = " ".join(words[chosen.randrange(max(1, len(words) - 3)) :])[:18].strip()
        image = Image.new("RGB", (320, 48), "white")
        at = (4, chosen.randrange(2, 9))
        ImageDraw.Draw(image).text(at, text, fill="black", font=chosen.choice(fonts))
        pictures.append(np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1)  # BGR, -1 to 1
        texts.append(text)
    np.savez("train.npz", x=np.stack(pictures[:_TRAIN]))
    np.savez("test.npz", x=np.stack(pictures[_TRAIN:]))
    Path("test.txt").write_text("\n".join(texts[_TRAIN:]), encoding="utf-8")


def judge(model: str) -> None:
    original = onnxruntime.InferenceSession(fetched("ppocr"), providers=["CPUExecutionProvider"])
    known = original.get_modelmeta().custom_metadata_map["character"].splitlines()
    characters = ["", *known, " "]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    pictures, texts = np.load("test.npz")["x"], Path("test.txt").read_text(encoding="utf-8").split("\n")
    errors = count = 0
    for i in range(0, len(pictures), 40):
        (answer,) = session.run(None, {"x": pictures[i : i + 40]})
        for row, text in zip(answer.argmax(-1), texts[i : i + 40], strict=True):
            read = "".join(characters[c] for j, c in enumerate(row) if c and (j == 0 or row[j - 1] != c))
            errors += _distance(read.replace(" ", ""), text.replace(" ", ""))
            count += len(text.replace(" ", ""))
    print(f"{model}: {errors / count:.4f} of {count} characters")


def _distance(a: str, b: str) -> int:
    """Levenshtein's."""
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
        above = row
    return above[-1]


if __name__ == "__main__":
    if sys.argv[1:] == ["draw"]:
        draw()
    elif len(sys.argv) == 3 and sys.argv[1] == "judge":
        judge(sys.argv[2])
    else:
        sys.exit(__doc__)
