"""The choices that the code's comments give figures for, each measured against what it was chosen over.

Prints one Markdown table a choice. About five minutes on two cores.
"""

import copy

import torch
from fit_minilm import minilm
from torch import nn

from spm_compress import FitSettings, FormLinear, fit_matrices, open_source
from spm_compress.fitting import svd_error
from spm_compress.forms.spm import begin, form, pairing

SQUARE = ["encoder.layer.0.attention.self.query.weight", "encoder.layer.3.attention.output.dense.weight"]
WIDE = ["encoder.layer.2.intermediate.dense.weight"]


def weights(names: list[str]) -> torch.Tensor:
    source = open_source(minilm())
    return torch.stack([source.read(name) for name in names])


def mean_error(batch: torch.Tensor, settings: FitSettings) -> float:
    results = fit_matrices(batch, settings)
    return sum(result.error for result in results) / len(results)


def start_gain() -> None:
    print("\n## Norm of the random start, relative to the weight's (384x384, 20 stages)\n\n| gain | error |\n|---|---|")
    chosen = begin._START_GAIN
    for gain in (1.0, 0.5, chosen, 0.05):
        begin._START_GAIN = gain
        print(f"| {gain} | {mean_error(weights(SQUARE), FitSettings(stages=20)):.4f} |")
    begin._START_GAIN = chosen


def orders() -> None:
    print("\n## Permutation between groups (384x384, mean of 3 seeds)\n")
    print("| order | 10 stages | 20 stages |\n|---|---|---|")
    spread = pairing._spread

    def table(width: int, before: int, after: int, seed: int, salt: int) -> pairing.Table:
        del before, after
        generator = torch.Generator().manual_seed(1000 * seed + salt)
        return pairing.Table(tuple(torch.randperm(width, generator=generator).tolist()))

    orders = {"perfect shuffle": spread, "affine, evenly spread": pairing._spread_evenly, "random table": table}
    for name, choose in orders.items():
        pairing._spread = choose
        errors = [
            sum(mean_error(weights(SQUARE), FitSettings(stages=stages, seed=seed)) for seed in range(3)) / 3
            for stages in (10, 20)
        ]
        print(f"| {name} | {errors[0]:.4f} | {errors[1]:.4f} |", flush=True)
    pairing._spread = spread


def rectangles() -> None:
    print("\n## Where the stages of a 1536x384 weight stand\n")
    print("| at width 384 | at width 1536 | kept | error | SVD of equal size |\n|---|---|---|---|---|")
    batch = weights(WIDE)
    chosen = form._wide_stages
    for narrow, wide in ((5, 5), (0, 10), (5, 10), (10, 5), (10, 10), (0, 15)):
        form._wide_stages = lambda stages, group, wide=wide: wide
        (result,) = fit_matrices(batch, FitSettings(stages=narrow + wide))
        count = result.operator.parameter_count
        svd = svd_error(batch[0], count)
        print(f"| {narrow} | {wide} | {count / batch[0].numel():.2%} | {result.error:.4f} | {svd:.4f} |")
    form._wide_stages = chosen


def trainable_numbers() -> None:
    print("\n## Training a fitted network on: canonical numbers or balanced ones (Adam, 300 steps of 256)\n")
    print("| numbers | accuracy before | after |\n|---|---|---|")
    torch.manual_seed(0)
    centers = torch.randn(10, 256)

    def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(10, (size,))
        return centers[labels] + 3.0 * torch.randn(size, 256), labels

    def train(model: nn.Module) -> None:
        adam = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in range(300):
            inputs, labels = batch(256)
            adam.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            adam.step()

    @torch.no_grad()
    def accuracy(model: nn.Module) -> float:
        inputs, labels = batch(10_000)
        return (model(inputs).argmax(1) == labels).float().mean().item()

    dense = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    train(dense)
    fitted = {i: fit_matrices(dense[i].weight.detach()[None], FitSettings())[0].operator for i in (0, 2)}
    for numbers in ("canonical", "balanced"):
        model = copy.deepcopy(dense)
        for i, operator in fitted.items():
            plain, bias = dense[i], dense[i].bias.detach()
            balanced = numbers == "balanced"
            model[i] = FormLinear.in_place_of(plain, operator) if balanced else FormLinear.of(operator, bias)
        before = accuracy(model)
        train(model)
        print(f"| {numbers} | {before:.3f} | {accuracy(model):.3f} |")


if __name__ == "__main__":
    start_gain()
    orders()
    rectangles()
    trainable_numbers()
