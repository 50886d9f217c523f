"""Training a student of any kind to answer as its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spm_compress import FitSettings, SPMLinear, compress_model
from spm_compress.distill import Distilled, DistillSettings, End, Loss, Rates, TrainingReport, distill
from spm_compress.distill.outputs import comparison
from spm_compress.distill.trainable import group_of
from spm_compress.distill.transformer_blocks import Blocks
from spm_compress.errors import FitError, UsageError

QUICK = DistillSettings(steps=30, batch=8, check_every=10, rates=Rates.parse("1e-2"), block_share=0.3)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(2)])
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x)}


class Encoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32))


def pair(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = make()
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=4, block=8, steps=10))
    return teacher, student


def data(count: int, size: int = 8, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, size, 32, generator=torch.Generator().manual_seed(seed)))


def run(make: Callable[[], nn.Module], settings: DistillSettings = QUICK, **more: Any) -> tuple[Distilled, nn.Module]:
    teacher, student = pair(make)
    return distill(teacher, student, data(12), data(4, seed=1), settings, **more), student


@pytest.mark.parametrize(("make", "loss"), [(Classifier, "logits"), (Encoder, "features")])
def test_the_loss_follows_from_what_the_model_answers(make: Callable[[], nn.Module], loss: str) -> None:
    teacher, student = pair(make)
    result = distill(teacher, student, data(150), data(20, seed=1), replace(QUICK, steps=300))
    assert result.loss == loss
    assert result.after > result.before


class _Counting(Encoder):
    """Counts how often it is run on each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[float] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        self.runs[float(x[0, 0])] += 1
        return super().forward(x)


@pytest.mark.parametrize(("room", "runs"), [(1.0, {1}), (0.0, {3}), (2.5 * 8 * 32 * 4 / 2**30, {1, 3})])
def test_the_teacher_runs_once_on_a_batch_as_long_as_its_answers_fit(room: float, runs: set[int]) -> None:
    teacher, student = pair(_Counting)
    teacher.runs.clear()
    settings = replace(QUICK, steps=18, block_share=0.0, remember=room)
    batches = data(6)
    # A loader that makes new tensors in every round, as one with workers does.
    loader = type("Loader", (), {"__iter__": lambda _: iter([x.clone() for x in batches])})()
    distill(teacher, student, loader, data(2, seed=1), settings)
    assert {teacher.runs[float(x[0, 0])] for x in batches} == runs
    _, plain = run(Encoder, replace(settings, steps=26, remember=0.0))
    _, kept = run(Encoder, replace(settings, steps=26))
    for one, two in zip(plain.parameters(), kept.parameters(), strict=True):
        assert torch.equal(one, two)


def test_tuples_of_a_data_set_and_keyword_batches_are_taken() -> None:
    for wrap in (lambda x: (x, torch.zeros(8)), lambda x: {"input": x}):
        teacher, student = pair(Encoder)
        loader, held = [wrap(x) for x in data(6)], [wrap(x) for x in data(2, seed=1)]
        assert distill(teacher, student, loader, held, replace(QUICK, steps=4)).steps == 4


def test_the_best_numbers_are_kept() -> None:
    seen: list[TrainingReport] = []
    result, student = run(Encoder, replace(QUICK, rates=Rates.parse("3"), steps=40), watch=seen.append)
    assert min(each.held_out for each in seen if each.held_out is not None) < result.after
    assert result.after == seen[-1].best
    held = data(4, seed=1)
    teacher, _ = pair(Encoder)
    compare = comparison(teacher(held[0]), None, 1.0)
    with torch.no_grad():
        answers = [torch.cat([compare.summary(model(x), {}) for x in held]) for model in (student, teacher)]
    assert compare.agreement(*answers) == pytest.approx(result.after, abs=1e-6)


def test_it_ends_early_without_a_gain() -> None:
    result, _ = run(Encoder, replace(QUICK, rates=Rates.parse("1e-30"), steps=100, patience=2))
    assert result.steps == 20
    assert result.after == result.before


def test_parts_of_a_batch_make_the_step_of_the_whole() -> None:
    settings = replace(QUICK, steps=3, block_share=0.0, loss=Loss.LOGITS, optimizer="SGD")
    students = []
    for accumulate in (1, 2):
        teacher, student = pair(Classifier)
        loader = [part for x in data(3) for part in x.chunk(accumulate)]
        distill(teacher, student, loader, data(2, seed=1), replace(settings, accumulate=accumulate, check_every=1))
        students.append(student)
    for one, two in zip(*(each.parameters() for each in students), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_blocks_get_what_the_teachers_get() -> None:
    teacher, student = pair(Classifier)
    blocks = Blocks(teacher, student)
    assert blocks.names == ["blocks.0", "blocks.1"]
    x = data(1)[0]
    loss = blocks.distance({}, lambda model: model(x))
    with torch.no_grad():
        first = teacher.blocks[0](x)
        expected = [
            (student.blocks[i](given) - teacher.blocks[i](given)).square().sum()
            / teacher.blocks[i](given).square().sum()
            for i, given in enumerate((x, first))
        ]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    # Its own error alone reaches a block: another second one leaves the first one's gradient as it is.
    gradients = []
    for _ in range(2):
        student.zero_grad()
        blocks.distance({}, lambda model: model(x)).backward()
        gradients.append([p.grad.clone() for p in student.blocks[0].parameters()])
        with torch.no_grad():
            for parameter in student.blocks[1].parameters():
                parameter.mul_(2)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_model_without_lists_is_taken_layer_by_layer() -> None:
    teacher, student = pair(Encoder)
    assert Blocks(teacher, student).names == ["0", "2"]


def test_agreement_is_the_rank_correlation_of_all_pairs() -> None:
    x, y = data(2, size=20)
    compare = comparison(x, None, 1.0)
    a, b = (compare.summary(each, {}).double() for each in (x, y))
    pairs = np.triu_indices(20, 1)
    ranks = [np.argsort(np.argsort((each @ each.T).numpy()[pairs])) for each in (a, b)]
    assert compare.agreement(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-9)
    assert compare.agreement(a, a) == pytest.approx(1)


def test_padding_does_not_count() -> None:
    features = torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    spoiled = torch.where(mask[:, :, None] == 1, features, 100.0)
    for name in ("last_hidden_state", "logits"):
        compare = comparison({name: features}, None, 2.0)
        batch = {"attention_mask": mask}
        assert float(compare.distance({name: spoiled}, {name: features}, batch)) == pytest.approx(0, abs=1e-5)
        assert float(compare.distance({name: spoiled}, {name: features}, {})) > 0.01


def test_a_group_trains_at_its_own_rate() -> None:
    _, before = pair(Encoder)
    result, student = run(Encoder, replace(QUICK, rates=replace(Rates.parse("1e-2"), spm=1e-30)))
    assert result.after > result.before
    was = dict(before.named_parameters())
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, was[name]) == ("arrays" in name), name
    groups = {name: group_of(name, each, student) for name, each in student.named_parameters()}
    assert groups["0.arrays.0_diagonal"] == "spm" and groups["0.bias"] == "norm"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], Rates()),
        (["1e-2"], Rates(1e-2, 1e-2, 1e-2, 1e-2, 1e-2)),
        (["1e-2, table=3e-3", "norm=1"], Rates(1e-2, 1e-2, 3e-3, 1.0, 1e-2)),
    ],
)
def test_rates_are_read(texts: list[str], expected: Rates) -> None:
    assert Rates.parse(*texts) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("words=1e-2", "`rate` 'words=1e-2': the groups are spm, dense, table, norm, scale"),
        ("spm=fast", "`rate` 'spm=fast': must be a number, or GROUP=NUMBER"),
        ("spm=0", "`rate` spm=0.0: must be above 0"),
    ],
)
def test_rates_that_are_none_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Rates.parse(text)


def test_rates_end_in_a_line_or_a_cosine() -> None:
    for end, middle in ((End.LINEAR, 0.25), (End.COSINE, (1 - 2**-0.5) / 2)):
        seen: list[TrainingReport] = []
        run(Encoder, replace(QUICK, steps=100, block_share=0.0, end=end), watch=seen.append)
        assert seen[74].rate == pytest.approx(middle)  # what the step after it takes


def test_a_mean_over_the_steps_is_what_is_kept() -> None:
    _, plain = run(Encoder, replace(QUICK, check_every=30))
    _, averaged = run(Encoder, replace(QUICK, check_every=30, average=0.9))
    moved = [float((x - y).detach().norm()) for x, y in zip(plain.parameters(), averaged.parameters(), strict=True)]
    assert max(moved) > 1e-3
    for average in (1.0, -0.1):
        with pytest.raises(UsageError, match="`average`"):
            replace(QUICK, average=average)


def test_hidden_states_count_where_they_are_weighed() -> None:
    seen = {}
    for weight in (0.0, 1.0, 3.0):
        reports: list[TrainingReport] = []
        run(Classifier, replace(QUICK, steps=1, block_share=0.0, hidden=weight), watch=reports.append)
        seen[weight] = reports[0].loss
    teacher, student = pair(Classifier)
    x = data(12)[0]
    hidden = []
    with torch.no_grad():
        a = b = x
        for i in range(2):
            a, b = teacher.blocks[i](a), student.blocks[i](b)
            hidden.append(float((b - a).square().sum() / a.square().sum()))
    assert seen[1.0] - seen[0.0] == pytest.approx(sum(hidden) / 2, rel=1e-4)
    assert seen[3.0] - seen[0.0] == pytest.approx(3 * sum(hidden) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "Adamw"}, "none of torch.optim"),
        ({"optimizer": "LBFGS"}, "does not step on one dense gradient"),
        ({"optimizer": "SparseAdam"}, "does not step on one dense gradient"),
        ({"optimizer": "Muon"}, "`optimizer` 'Muon': .*2D parameters.*use AdamW"),
        ({"batch": 8, "accumulate": 3}, "must divide the batch"),
        ({"steps": 0}, "steps 0: must be 1 or more"),
        ({"held_out": 1.5}, "share between 0 and 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run(Encoder, replace(QUICK, **change))


def test_a_student_without_stages_and_empty_data_are_refused() -> None:
    teacher, student = pair(Encoder)
    with pytest.raises(UsageError, match="no SPM layer"):
        distill(teacher, deepcopy(teacher), data(2), data(1))
    with pytest.raises(UsageError, match="nothing is held out"):
        distill(teacher, student, data(2), [])
    with pytest.raises(UsageError, match="no data to train on"):
        distill(teacher, student, [], data(1))


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    teacher, student = pair(Encoder)
    with pytest.raises(FitError, match="not finite at step 1; use lower learning rates"):
        distill(teacher, student, [torch.full((8, 32), torch.inf)], data(1), QUICK)


def test_a_compressed_model_trains_in_a_plain_loop() -> None:
    teacher, student = pair(Encoder)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for x in data(100):
        loss = (student(x) - teacher(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert isinstance(student[0], SPMLinear)
    assert np.mean(losses[-12:]) < 0.85 * np.mean(losses[:12])
