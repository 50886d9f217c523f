"""A student learns a teacher that is made of stages: y = S2 tanh(S1 x), each S a chain of log2 n stages.

The paper's claim (arXiv 2512.23905): where the truth is such a composition, a student of the same kind learns it with
O(n log n) numbers, better and at large n faster than a dense one. The dense twins have the same width, or as many
parameters (a narrower hidden layer). Inputs are drawn anew for every step; the score is the relative error on 2,000
inputs that were not trained on (1: as good as answering zero).

usage: python examples/train/compositional_teacher.py [--features 256 512 1024 2048] [--seeds 3] [--steps 1000]
"""

import math

import torch
from harness import Study, Variant, arguments, parameters, run
from torch import Tensor, nn

from spm_compress import SPMLinear


def network(first: nn.Module, second: nn.Module) -> nn.Sequential:
    return nn.Sequential(first, nn.Tanh(), second)


def main() -> None:
    options = arguments(__doc__, features=[256, 512, 1024, 2048], batch=128, steps=1000)
    for n in options.features:
        stages = round(math.log2(n))
        torch.manual_seed(1234)
        # Other pairings than the student's: it knows the kind of map, not the map.
        teacher = network(*(SPMLinear(n, n, stages=stages, schedule="random", seed=7 + i) for i in range(2)))
        teacher = teacher.to(options.device).requires_grad_(False)
        held = torch.randn(2000, n, generator=torch.Generator().manual_seed(99)).to(options.device)
        known = teacher(held)

        def batch(draw: torch.Generator, n: int = n, teacher: nn.Module = teacher) -> tuple[Tensor, Tensor]:
            inputs = torch.randn(options.batch, n, generator=draw).to(options.device)
            return inputs, teacher(inputs)

        def score(model: nn.Module, held: Tensor = held, known: Tensor = known) -> float:
            return float((model(held) - known).norm() / known.norm())

        def spm(n: int = n, stages: int = stages) -> nn.Module:
            return network(SPMLinear(n, n, stages=stages), SPMLinear(n, n, stages=stages))

        def same_pairing(n: int = n, stages: int = stages) -> nn.Module:
            return network(*(SPMLinear(n, n, stages=stages, schedule="random", seed=7 + i) for i in range(2)))

        hidden = max(1, (parameters(spm()) - n) // (2 * n + 1))
        variants = [
            Variant("dense, equal width", lambda n=n: network(nn.Linear(n, n), nn.Linear(n, n))),
            Variant("dense, equal parameters", lambda n=n, h=hidden: network(nn.Linear(n, h), nn.Linear(h, n))),
            Variant(f"SPM, {stages} stages, its own pairing", spm),
            Variant(f"SPM, {stages} stages, the teacher's pairing", same_pairing),
        ]
        study = Study(
            title=f"compositional teacher, n = {n}",
            score_name="relative error",
            batch=batch,
            loss=lambda model, inputs, targets: (
                nn.functional.mse_loss(model(inputs), targets) / targets.square().mean()
            ),
            score=score,
            steps=1000,
            rates=(1e-3, 5e-3, 5e-2),
            higher_is_better=False,
        )
        run(study, variants, options)


if __name__ == "__main__":
    main()
