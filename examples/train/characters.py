"""Character-level language modelling with a small transformer: SPM in the attention projections and the feedforward.

The text is the reference of Python's language, which every Python carries (pydoc_data.topics, 0.46 M characters); or
any file with --text. The last tenth is held out; the score is the loss on it in bits a character, lower is better.

--adaptive adds the experiment on mixing that depends on the input (the paper's outlook): in each stage the off-diagonal
coefficient of a feature is multiplied by 1 + tanh(a * x), x the feature itself, a learnt and zero at first. It is
compared with plain stages of as many parameters.

usage: python examples/train/characters.py [--text FILE] [--width 256] [--stages 8] [--seeds 3] [--adaptive 1]
"""

from pathlib import Path
from pydoc_data.topics import topics

import torch
from harness import Linear, Study, Variant, arguments, parameters, run
from torch import Tensor, nn
from torch.nn import functional as F

from spm_compress import SPMLinear
from spm_compress.forms.spm.pairing import partner


class Block(nn.Module):
    """Attention and feedforward, each on normed features and added to what it was given; maps made by `linear`."""

    def __init__(self, width: int, hidden: int, heads: int, linear: Linear) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.up, self.down = linear(width, hidden), linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, length, width) -> the same."""
        y = self.norms[0](x)
        query, key, value = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Characters(nn.Module):
    """A decoder that reads `length` characters and predicts each one's successor."""

    def __init__(self, symbols: int, width: int, length: int, depth: int, linear: Linear) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4 * width, 4, linear) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)

    def forward(self, text: Tensor) -> Tensor:
        """(samples, length) int64 -> (samples, length, symbols), logits of the next character."""
        x = self.symbols(text) + self.places.weight[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class AdaptiveSPM(nn.Module):
    """Stages whose off-diagonal coefficients depend on the input; square or rectangular as SPMLinear is."""

    def __init__(self, inputs: int, outputs: int, stages: int) -> None:
        super().__init__()
        self.inputs, self.outputs, self.width = inputs, outputs, max(inputs, outputs)
        plain = SPMLinear(self.width, self.width, stages=stages)
        self.diagonal, self.off_diagonal = plain.arrays["0_diagonal"], plain.arrays["0_off_diagonal"]
        tables = []
        for group in plain.form.chains[0].groups:
            for i, stride in enumerate(group.strides):
                order = torch.arange(self.width) if i else torch.as_tensor(group.order.indices(self.width))
                tables.append(torch.stack([order, torch.as_tensor(partner(self.width, stride))]))
        self.register_buffer("tables", torch.stack(tables), persistent=False)
        self.gates = nn.Parameter(torch.zeros(stages, self.width))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        x = F.pad(x, (0, self.width - self.inputs))
        for diagonal, off_diagonal, gate, (order, other) in zip(
            self.diagonal, self.off_diagonal, self.gates, self.tables, strict=True
        ):
            x = x[..., order]
            x = diagonal * x + off_diagonal * (1 + torch.tanh(gate * x)) * x[..., other]
        return x[..., : self.outputs] + self.bias


def main() -> None:
    options = arguments(__doc__, text="", width=256, length=128, depth=2, stages=8, batch=16, steps=1500, adaptive=0)
    text = Path(options.text).read_text(encoding="utf-8") if options.text else "".join(topics.values())
    known = sorted(set(text))
    numbers = {each: i for i, each in enumerate(known)}
    data = torch.tensor([numbers[each] for each in text])
    cut = int(0.9 * len(data))
    train, held = data[:cut], data[cut:]

    def batch(draw: torch.Generator) -> tuple[Tensor, Tensor]:
        begins = torch.randint(len(train) - options.length - 1, (options.batch,), generator=draw)
        rows = torch.stack([train[i : i + options.length + 1] for i in begins])
        return rows[:, :-1], rows[:, 1:]

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def score(model: nn.Module) -> float:
        count = (len(held) - 1) // options.length
        rows, nexts = (held[i : i + count * options.length].view(count, -1) for i in (0, 1))
        losses = [
            loss(model, x.to(options.device), y.to(options.device))
            for x, y in zip(rows.split(32), nexts.split(32), strict=True)
        ]
        sizes = torch.tensor([len(x) for x in rows.split(32)], dtype=torch.float)
        return float((torch.stack(losses).cpu() * sizes).sum() / sizes.sum() / torch.tensor(2.0).log())

    def make(width: int, linear: Linear) -> nn.Module:
        return Characters(len(known), width, options.length, options.depth, linear)

    def spm(inputs: int, outputs: int) -> nn.Module:
        return SPMLinear(inputs, outputs, stages=options.stages)

    target = parameters(make(options.width, spm))
    narrow = next(w for w in range(options.width, 7, -4) if parameters(make(w, nn.Linear)) <= target)
    variants = [
        Variant("dense, equal width", lambda: make(options.width, nn.Linear)),
        Variant("dense, equal parameters", lambda: make(narrow, nn.Linear)),
        Variant(f"SPM, {options.stages} stages", lambda: make(options.width, spm)),
    ]
    if options.adaptive:
        # Gates cost half of what a general stage does: two adaptive stages stand against three plain ones.
        fewer = 2 * options.stages // 3
        variants.append(
            Variant(
                f"adaptive SPM, {fewer} stages",
                lambda: make(options.width, lambda inputs, outputs: AdaptiveSPM(inputs, outputs, fewer)),
            )
        )
    study = Study(
        title="characters",
        score_name="bits a character",
        batch=batch,
        loss=loss,
        score=score,
        steps=1500,
        rates=(1e-3, 4e-3),
        higher_is_better=False,
    )
    run(study, variants, options)


if __name__ == "__main__":
    main()
