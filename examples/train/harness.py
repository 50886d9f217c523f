"""What the four studies share: variants of one model, several seeds, interleaved step times, and the table."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

__all__ = ["Linear", "Study", "Variant", "arguments", "parameters", "run"]

# (inputs, outputs) -> a layer: nn.Linear, or SPMLinear with its stages chosen
Linear = Callable[[int, int], nn.Module]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to build the model; make: called with a seed already set."""

    name: str
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Study:
    """What a variant is trained on and judged by.

    batch: (generator) -> inputs, targets of one step, on the CPU; loss: (model, inputs, targets) -> scalar;
    score: (model) -> number; rates: learning rates to choose from, each tried with the first seed.
    """

    title: str
    score_name: str
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor]]
    loss: Loss
    score: Callable[[nn.Module], float]
    steps: int
    rates: Sequence[float]
    higher_is_better: bool = True


@dataclass
class _Row:
    variant: Variant
    rate: float = 0.0
    scores: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def arguments(description: str | None, **defaults: object) -> argparse.Namespace:
    """Read the command line: what all studies have, and the study's own options with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    common: dict[str, object] = {"seeds": 3, "steps": 0, "device": "cpu", "threads": 0, "json": ""}
    for name, value in {**defaults, **{k: v for k, v in common.items() if k not in defaults}}.items():
        kind = type(value[0]) if isinstance(value, list) else type(value)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=value, nargs="+" if isinstance(value, list) else None
        )
    found = parser.parse_args()
    if found.threads:
        torch.set_num_threads(found.threads)
    return found


def parameters(model: nn.Module) -> int:
    """Count what trains."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def run(study: Study, variants: Sequence[Variant], options: argparse.Namespace) -> list[dict[str, object]]:
    """Train every variant with every seed, time a step of each, interleaved, and print the table.

    The learning rate of each variant is the best of the study's by the first seed, so none is at a disadvantage.
    """
    console = Console(width=100, highlight=False)
    steps = options.steps or study.steps
    rows = [_Row(variant) for variant in variants]
    for row in rows:
        tried = {rate: _train(study, row.variant, rate, 0, steps, options.device) for rate in study.rates}
        best = max if study.higher_is_better else min
        row.rate = best(tried, key=lambda rate: tried[rate])
        row.scores = [tried[row.rate]]
        row.scores += [_train(study, row.variant, row.rate, s, steps, options.device) for s in range(1, options.seeds)]
        console.print(f"{study.title}, {row.variant.name}: {_spread(row.scores)}", style="dim")
    _time(study, rows, options.device)
    results = [_result(study, row, rows[0], steps) for row in rows]
    console.print(_table(study, results))
    if options.json:
        path = Path(options.json)
        before = json.loads(path.read_text()) if path.exists() else []
        path.write_text(
            json.dumps([each for each in before if each["study"] != study.title] + results, indent=2) + "\n"
        )
    return results


def _train(study: Study, variant: Variant, rate: float, seed: int, steps: int, device: str) -> float:
    torch.manual_seed(seed)
    model = variant.make().to(device)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    warm_up = steps // 10 + 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(steps):
        _step(study, model, optimizer, draw, device)
        schedule.step()
    model.eval()
    with torch.no_grad():
        return study.score(model)


def _step(study: Study, model: nn.Module, optimizer: torch.optim.Optimizer, draw: torch.Generator, device: str) -> None:
    inputs, targets = study.batch(draw)
    loss = study.loss(model, inputs.to(device), targets.to(device))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _time(study: Study, rows: Sequence[_Row], device: str, repeats: int = 25) -> None:
    """Time whole training steps, the variants interleaved, so that a busy moment meets all of them."""
    draw = torch.Generator().manual_seed(0)
    models = [row.variant.make().to(device) for row in rows]
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.0) for model in models]
    for turn in range(repeats + 3):
        for row, model, optimizer in zip(rows, models, optimizers, strict=True):
            began = time.perf_counter()
            _step(study, model, optimizer, draw, device)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if turn >= 3:
                row.seconds.append(time.perf_counter() - began)


def _result(study: Study, row: _Row, first: _Row, steps: int) -> dict[str, object]:
    seconds = statistics.median(row.seconds)
    return {
        "study": study.title,
        "variant": row.variant.name,
        "parameters": parameters(row.variant.make()),
        "score": study.score_name,
        "mean": statistics.fmean(row.scores),
        "spread": statistics.stdev(row.scores) if len(row.scores) > 1 else 0.0,
        "seeds": len(row.scores),
        "learning_rate": row.rate,
        "steps": steps,
        "step_seconds": seconds,
        "step_ratio": statistics.median(first.seconds) / seconds,
    }


def _table(study: Study, results: Sequence[dict[str, object]]) -> Table:
    table = Table(title=study.title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("variant")
    for heading in ("parameters", study.score_name, "learning rate", "step, ms", "speed of a step"):
        table.add_column(heading, justify="right")
    for each in results:
        table.add_row(
            str(each["variant"]),
            f"{each['parameters']:,}",
            f"{each['mean']:.4f} ± {each['spread']:.4f}",
            f"{each['learning_rate']:g}",
            f"{1000 * float(str(each['step_seconds'])):.1f}",
            f"{each['step_ratio']:.2f}x",
        )
    return table


def _spread(scores: Sequence[float]) -> str:
    return ", ".join(f"{score:.4f}" for score in scores)
