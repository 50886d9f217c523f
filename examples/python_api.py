"""The Python path: compress a live module in place, train it a little, run it. About a minute.

A small network learns handwritten-digit-like blobs, loses most of its accuracy to compression, and gets
it back by ordinary training: SPM layers are ordinary layers.
"""

import torch
from torch import nn

from spm_compress import compress_model

torch.manual_seed(0)
CENTERS = torch.randn(10, 256)


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(10, (size,))
    return CENTERS[labels] + 3.0 * torch.randn(size, 256), labels


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        inputs, labels = batch(256)
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    inputs, labels = batch(10_000)
    return (model(inputs).argmax(1) == labels).float().mean().item()


def main() -> None:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(model, 300)
    numbers = sum(p.numel() for p in model.parameters())
    print(f"dense       {numbers:7} numbers, accuracy {accuracy(model):.3f}")
    result = compress_model(model, stages=10)
    numbers = sum(p.numel() for p in model.parameters())
    print(f"compressed  {numbers:7} numbers, accuracy {accuracy(model):.3f}, weight errors", end=" ")
    print({name: round(error, 3) for name, error in result.replaced.items()})
    train(model, 300)
    print(f"trained on  {numbers:7} numbers, accuracy {accuracy(model):.3f}")


if __name__ == "__main__":
    main()
