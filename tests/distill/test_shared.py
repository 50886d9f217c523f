"""Tables that train as a whole."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spm_compress import FitSettings, compress_model
from spm_compress.distill import DistillSettings, Rates, Trained, distill
from spm_compress.distill.shared import shared_changes

SETTINGS = DistillSettings(
    steps=40, batch=8, check_every=10, rates=Rates.parse("1e-2"), block_share=0.0, trained=Trained.ALL
)


class Words(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
        self.head = nn.Linear(32, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.body(self.table(words)))


def pair(tied: bool = False) -> tuple[Words, Words]:
    torch.manual_seed(0)
    teacher = Words(tied)
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=3, block=8, steps=10), include=("body.*",))
    return teacher, student


def words(count: int, below: int = 50, seed: int = 0) -> list[Tensor]:
    return list(torch.randint(below, (count, 8, 5), generator=torch.Generator().manual_seed(seed)))


def test_words_that_the_data_never_shows_learn_with_the_others() -> None:
    teacher, student = pair()
    before = student.table.weight.detach().clone()
    distill(teacher, student, words(12, below=40), words(4, below=40, seed=1), SETTINGS)
    unseen = (student.table.weight - before)[40:]
    assert unseen.norm(dim=1).min() > 0
    assert torch.linalg.matrix_rank(unseen) > 1  # more than one number for all


def test_the_student_answers_the_same_once_they_are_folded_in() -> None:
    _, student = pair()
    names = [name for name, _ in student.named_parameters()]
    trained = dict(student.named_parameters())
    (batch,) = words(1)
    with shared_changes(student, trained):
        nn.init.normal_(trained["table.shared_change"], std=0.1)
        with torch.no_grad():
            expected = student(batch)
    with torch.no_grad():
        torch.testing.assert_close(student(batch), expected)
    assert [name for name, _ in student.named_parameters()] == names


@pytest.mark.parametrize("why", ["it makes the logits too", "it does not train", "its rows are held short"])
def test_a_table_is_left_alone_if(why: str) -> None:
    _, student = pair(tied=why == "it makes the logits too")
    trained = dict(student.named_parameters())
    if why == "it does not train":
        del trained["table.weight"]
    if why == "its rows are held short":
        student.table.max_norm = 1.0
    before = set(trained)
    with shared_changes(student, trained):
        assert set(trained) == before


def test_a_training_that_fails_leaves_the_student_whole() -> None:
    teacher, student = pair()
    names = [name for name, _ in student.named_parameters()]

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(teacher, student, words(12), words(4, seed=1), replace(SETTINGS, steps=4), watch=stop)
    assert [name for name, _ in student.named_parameters()] == names
