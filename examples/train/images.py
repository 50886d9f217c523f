"""Image classification: an MLP and a small MLP-Mixer, dense and with SPM layers.

Data, taken from --data:
  a folder of Fashion-MNIST's or MNIST's four idx files, packed or not (Debian: apt install dataset-fashion-mnist);
  CIFAR-10 in its binary version (data_batch_1.bin ... test_batch.bin);
  train/ and test/ (or val/) with a folder of images for each class, as ImageNet is laid out (needs Pillow).

usage: python examples/train/images.py [--data /usr/share/datasets/fashion-mnist] [--model mlp mixer] [--seeds 3]
"""

import gzip
from pathlib import Path

import numpy as np
import torch
from harness import Linear, Study, Variant, arguments, parameters, run
from torch import Tensor, nn

from spm_compress import SPMLinear

Images = tuple[Tensor, Tensor]  # (count, channels, side, side) float32 in [0, 1], (count,) int64


def load(folder: Path, side: int) -> tuple[Images, Images]:
    """Return training and test images; side: that photographs are scaled to."""
    if list(folder.glob("*-images-idx3-ubyte*")):
        return _idx(folder, "train"), _idx(folder, "t10k")
    if (folder / "test_batch.bin").exists():
        return _cifar(sorted(folder.glob("data_batch_*.bin"))), _cifar([folder / "test_batch.bin"])
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), None)
    if (folder / "train").is_dir() and test is not None:
        return _photographs(folder / "train", side), _photographs(test, side)
    raise SystemExit(f"error: {folder}: holds no idx files, no CIFAR-10 .bin files and no train/ and test/ folders")


def _idx(folder: Path, part: str) -> Images:
    def read(kind: str) -> np.ndarray:
        (path,) = sorted(folder.glob(f"{part}-{kind}-ubyte*"))[:1]
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dims = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * len(dims)).reshape(dims)

    images = torch.from_numpy(read("images-idx3").astype(np.float32) / 255)[:, None]
    return images, torch.from_numpy(read("labels-idx1").astype(np.int64))


def _cifar(paths: list[Path]) -> Images:
    rows = np.concatenate([np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073) for path in paths])
    images = rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(rows[:, 0].astype(np.int64))


def _photographs(folder: Path, side: int) -> Images:
    from PIL import Image

    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    found, labels = [], []
    for label, place in enumerate(classes):
        for path in sorted(place.iterdir()):
            with Image.open(path) as image:
                found.append(np.asarray(image.convert("RGB").resize((side, side)), np.float32) / 255)
            labels.append(label)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al., arXiv 2105.01601): mixes patches, then channels, in turns."""

    def __init__(
        self, shape: tuple[int, int, int], classes: int, patch: int, width: int, hidden: int, depth: int, linear: Linear
    ) -> None:
        super().__init__()
        channels, rows, columns = shape
        patches = (rows // patch) * (columns // patch)
        self.cut = nn.Unfold(patch, stride=patch)
        self.embed = nn.Linear(channels * patch * patch, width)
        self.tokens = nn.ModuleList(_block(patches, patches, nn.Linear, width) for _ in range(depth))
        self.channels = nn.ModuleList(_block(width, hidden, linear, width) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """(samples, channels, rows, columns) -> (samples, classes)."""
        x = self.embed(self.cut(images).mT)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens[1:](tokens[0](x).mT).mT
            x = x + channels(x)
        return self.head(x.mean(1))


def _block(features: int, hidden: int, linear: Linear, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), linear(features, hidden), nn.GELU(), linear(hidden, features))


def mlp(pixels: int, classes: int, hidden: int, linear: Linear) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), linear(pixels, hidden), nn.ReLU(), linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def main() -> None:
    options = arguments(
        __doc__,
        data="/usr/share/datasets/fashion-mnist",
        model=["mlp", "mixer"],
        stages=10,
        width=512,
        side=64,
        batch=128,
        steps=2000,
    )
    train, test = load(Path(options.data), options.side)
    mean, spread = train[0].mean(), train[0].std()
    train, test = ((each[0].sub(mean).div(spread), each[1]) for each in (train, test))
    shape, classes = tuple(train[0].shape[1:]), int(train[1].max()) + 1

    def spm(inputs: int, outputs: int) -> nn.Module:
        return SPMLinear(inputs, outputs, stages=options.stages)

    def batch(draw: torch.Generator) -> Images:
        chosen = torch.randint(len(train[0]), (options.batch,), generator=draw)
        return train[0][chosen], train[1][chosen]

    def score(model: nn.Module) -> float:
        parts = zip(test[0].split(500), test[1].split(500), strict=True)
        right = sum(int((model(x.to(options.device)).argmax(1).cpu() == y).sum()) for x, y in parts)
        return right / len(test[0])

    makers = {
        "mlp": lambda width, linear: mlp(int(np.prod(shape)), classes, width, linear),
        "mixer": lambda width, linear: Mixer(shape, classes, shape[1] // 7 or 1, width // 2, width, 4, linear),
    }
    for name in options.model:
        make = makers[name]
        target = parameters(make(options.width, spm))
        narrow = next(w for w in range(options.width, 1, -2) if parameters(make(w, nn.Linear)) <= target)
        variants = [
            Variant("dense, equal width", lambda make=make: make(options.width, nn.Linear)),
            Variant("dense, equal parameters", lambda make=make, w=narrow: make(w, nn.Linear)),
            Variant(f"SPM, {options.stages} stages", lambda make=make: make(options.width, spm)),
        ]
        study = Study(
            title=f"images, {name}",
            score_name="accuracy",
            batch=batch,
            loss=lambda model, inputs, targets: nn.functional.cross_entropy(model(inputs), targets),
            score=score,
            steps=2000,
            rates=(1e-3, 4e-3),
        )
        run(study, variants, options)


if __name__ == "__main__":
    main()
