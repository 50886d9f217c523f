"""A GRU cell with SPM inside: the adding problem (Hochreiter and Schmidhuber, 1997).

A sequence of random numbers, two of them marked; the answer is the sum of those two. Remembering one number to the end
is what a recurrent map has to learn. The score is the mean squared error on 2,000 new sequences; always answering the
mean gives 0.167.

usage: python examples/train/recurrent.py [--width 256] [--length 50] [--stages 8] [--seeds 3]
"""

import torch
from harness import Linear, Study, Variant, arguments, parameters, run
from torch import Tensor, nn

from spm_compress import SPMLinear


class Recurrent(nn.Module):
    """A GRU (Cho et al., arXiv 1406.1078) whose three recurrent maps are made by `linear`, and a linear readout."""

    def __init__(self, width: int, linear: Linear) -> None:
        super().__init__()
        self.width = width
        self.inputs = nn.Linear(2, 3 * width)
        self.reset, self.update, self.new = (linear(width, width) for _ in range(3))
        self.readout = nn.Linear(width, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        """(samples, length, 2) -> (samples,)."""
        state = sequence.new_zeros(len(sequence), self.width)
        # An SPM multiplies its stages out once for the whole sequence, not at every step.
        maps = (each.fused() if isinstance(each, SPMLinear) else each for each in (self.reset, self.update, self.new))
        to_reset, to_update, to_new = maps
        for now in self.inputs(sequence).unbind(1):
            reset, update, new = now.chunk(3, dim=1)
            reset, update = torch.sigmoid(reset + to_reset(state)), torch.sigmoid(update + to_update(state))
            state = torch.lerp(torch.tanh(new + reset * to_new(state)), state, update)
        return self.readout(state)[:, 0]


def sequences(count: int, length: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    numbers = torch.rand(count, length, generator=draw)
    marks = torch.zeros_like(numbers)
    half = length // 2
    for low, high in ((0, half), (half, length)):
        marks.scatter_(1, torch.randint(low, high, (count, 1), generator=draw), 1.0)
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(1)


def main() -> None:
    options = arguments(__doc__, width=256, length=50, stages=8, batch=64, steps=1000)
    held, known = sequences(2000, options.length, torch.Generator().manual_seed(99))

    def spm(inputs: int, outputs: int) -> nn.Module:
        return SPMLinear(inputs, outputs, stages=options.stages)

    target = parameters(Recurrent(options.width, spm))
    narrow = next(w for w in range(options.width, 1, -1) if parameters(Recurrent(w, nn.Linear)) <= target)
    variants = [
        Variant("dense, equal width", lambda: Recurrent(options.width, nn.Linear)),
        Variant("dense, equal parameters", lambda: Recurrent(narrow, nn.Linear)),
        Variant(f"SPM, {options.stages} stages", lambda: Recurrent(options.width, spm)),
    ]
    study = Study(
        title=f"recurrent, length {options.length}",
        score_name="squared error",
        batch=lambda draw: sequences(options.batch, options.length, draw),
        loss=lambda model, inputs, targets: nn.functional.mse_loss(model(inputs), targets),
        score=lambda model: float(nn.functional.mse_loss(model(held.to(options.device)).cpu(), known)),
        steps=1000,
        rates=(1e-3, 4e-3),
        higher_is_better=False,
    )
    run(study, variants, options)


if __name__ == "__main__":
    main()
