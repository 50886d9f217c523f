"""Programs of torch.export as modules that train: which products are linear layers, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spm_compress.checkpoint import open_source
from spm_compress.checkpoint.imported_program import import_program, why_not_imported_program
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.errors import SourceError


def program(
    path: Path, model: nn.Module, *example: Any, decomposed: bool = False, batch: int | None = None
) -> ProgramSource:
    """Save a module as a program of any batch, or of the example's; return it as a source."""
    axes = None if batch is not None else tuple({0: torch.export.Dim("batch")} for _ in example)
    found = torch.export.export(model, example, dynamic_shapes=axes)
    torch.export.save(found.run_decompositions() if decomposed else found, path)
    source = open_source(path)
    assert isinstance(source, ProgramSource)
    return source


class Everything(nn.Module):
    """A layer with a bias, one without, one used twice, a table tied to a head, and matrices that are no layer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bare, self.twice = nn.Linear(8, 12), nn.Linear(12, 8, bias=False), nn.Linear(8, 8)
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.scaled, self.loose = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8))
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bare(F.relu(self.first(x)))
        x = self.norm(self.twice(self.twice(x))) + self.table(words)
        x = F.linear(x, 2 * self.scaled.weight, self.scaled.bias) @ self.loose
        return self.head(x), x


def everything(path: Path, **how: Any) -> tuple[nn.Module, ProgramSource, tuple[Tensor, Tensor]]:
    model = Everything().eval()
    example = torch.randn(3, 8), torch.arange(3)
    return model, program(path, model, *example, **how), (torch.randn(5, 8), torch.arange(5) + 7)


@pytest.mark.parametrize("decomposed", [False, True])
def test_plain_products_are_linear_layers_and_the_answer_stays(tmp_path: Path, decomposed: bool) -> None:
    model, source, (x, words) = everything(tmp_path / "model.pt2", decomposed=decomposed)
    imported = import_program(source)
    with torch.no_grad():
        for found, expected in zip(imported(x=x, words=words), model(x, words), strict=True):
            torch.testing.assert_close(found, expected)
    linears = {name for name, each in imported.named_modules() if isinstance(each, nn.Linear)}
    assert linears == {"graph.first", "graph.bare", "graph.twice"}
    assert imported.batch is None
    assert imported.inputs == {"x": torch.float32, "words": torch.int64}
    held = {**dict(imported.named_parameters(remove_duplicate=False)), **dict(imported.named_buffers())}
    for name in {*source.tensors()} - {"norm.num_batches_tracked"}:
        assert torch.equal(held[imported.members[name]], source.read(name)), name


def test_every_call_of_a_layer_follows_its_weight(tmp_path: Path) -> None:
    model, source, (x, words) = everything(tmp_path / "model.pt2")
    imported = import_program(source)
    layers = dict(imported.named_modules())
    with torch.no_grad():
        for name in ("first", "bare", "twice"):
            for each in (getattr(model, name), layers[f"graph.{name}"]):
                each.weight.add_(0.1)
        for found, expected in zip(imported(x=x, words=words), model(x, words), strict=True):
            torch.testing.assert_close(found, expected)


def test_two_imports_and_their_source_share_nothing(tmp_path: Path) -> None:
    _, source, _ = everything(tmp_path / "model.pt2")
    one, two = import_program(source), import_program(source)
    before = source.read("first.weight").clone()
    with torch.no_grad():
        for x in one.parameters():
            x.zero_()
    assert torch.equal(two.get_parameter("graph.first.weight"), before)
    assert torch.equal(source.read("first.weight"), before)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, pair: tuple[Tensor, Tensor], *, scale: float, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.layer(pair[0]) + pair[1] * scale
        return {"logits": x if mask is None else x * mask}


def test_nested_inputs_and_numbers_are_put_in_their_place(tmp_path: Path) -> None:
    model = Named().eval()
    pair = torch.randn(3, 8), torch.randn(3, 8)
    found = torch.export.export(model, (pair,), {"scale": 2.0, "mask": torch.ones(3, 1)})
    torch.export.save(found, tmp_path / "model.pt2")
    source = open_source(tmp_path / "model.pt2")
    assert isinstance(source, ProgramSource)
    imported = import_program(source)
    assert imported.batch == 3
    assert list(imported.inputs) == ["pair_0", "pair_1", "mask"]
    mask = torch.zeros(3, 1)
    mask[1] = 2
    with torch.no_grad():
        answer = imported(pair_0=pair[0], pair_1=pair[1], mask=mask)
        torch.testing.assert_close(answer, model(pair, scale=2.0, mask=mask))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), "aten.dropout.default"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), "aten.batch_norm.default"),
    ],
)
def test_a_program_of_a_model_in_training_is_refused(tmp_path: Path, make: Callable[[], nn.Module], why: str) -> None:
    source = program(tmp_path / "model.pt2", make().train(), torch.randn(3, 8))
    said = why_not_imported_program(source, ["0.weight"])
    assert said == f"it was exported in training mode ({why}); call eval() on the model before torch.export"
    with pytest.raises(SourceError, match=r"model.pt2: cannot be trained, as it was exported in training mode"):
        import_program(source)


def test_weights_that_are_multiplied_in_no_plain_product_are_said(tmp_path: Path) -> None:
    _, source, _ = everything(tmp_path / "model.pt2")
    assert why_not_imported_program(source, ["first.weight", "loose"]) is None
    why = "it does not multiply by a fitted weight in plain products alone"
    for name in ("loose", "scaled.weight", "head.weight"):
        assert why_not_imported_program(source, [name]) == why, name
