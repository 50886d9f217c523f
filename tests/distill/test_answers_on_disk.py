"""A teacher's answers on disk: found again, never wrong, never more than there is room for."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers import BertModel

from spm_compress import FitSettings, compress_model, write_artifact
from spm_compress.checkpoint import Artifact, Source
from spm_compress.distill import DistillSettings, Rates, TrainingReport, distill, recover
from spm_compress.distill.answers_on_disk import AnswersOnDisk
from spm_compress.distill.teacher_digest import teacher_digest
from spm_compress.errors import UsageError

QUICK = DistillSettings(steps=30, batch=8, check_every=5, rates=Rates.parse("1e-2"), block_share=0.0)
CPU = torch.device("cpu")


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 48), nn.Linear(48, 32)
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x).tanh()) * self.scale
        return found


def data(count: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 8, 32, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher = Encoder()
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=3, block=8, steps=3))
    with torch.no_grad():
        for x in student.parameters():  # so that there is something to learn in a few steps
            x.add_(torch.randn_like(x), alpha=0.5)
    return teacher, student


Run = Callable[..., tuple[int, list[Tensor]]]


@pytest.fixture
def run(pair: tuple[nn.Module, nn.Module], tmp_path: Path) -> Run:
    """Train; return how often the teacher ran and the numbers that the student ended with."""

    def trained(settings: DistillSettings = QUICK, change: Callable[[Any], None] | None = None) -> Any:
        teacher, student = deepcopy(pair)
        if change is not None:
            change(teacher)
        runs: list[int] = []
        teacher.register_forward_hook(lambda *_: runs.append(1))
        distill(teacher, student, data(6), data(2, seed=1), settings, cache=tmp_path)
        return len(runs), [x.detach().clone() for x in student.parameters()]

    return trained


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("teacher/*/*.safetensors"))


def test_a_second_training_runs_no_teacher_and_ends_with_the_same_bytes(
    run: Run, pair: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    runs, plain = run(replace(QUICK, remember_disk=0.0))
    assert runs == 8 and not files(tmp_path)
    assert not same(plain, list(pair[1].parameters()))
    assert run()[0] == 8 and len(files(tmp_path)) == 8
    for settings in (QUICK, replace(QUICK, remember=0.0)):
        runs, found = run(settings)
        assert runs == 0
        assert same(found, plain)
    runs, faster = run(replace(QUICK, rates=Rates.parse("2e-2"), seed=3))
    assert runs == 0
    assert not same(faster, plain)


def test_other_answers_are_not_taken_for_them(run: Run) -> None:
    run()

    def set_scale(teacher: Any) -> None:
        teacher.scale = 2.0

    def set_bias(teacher: Any) -> None:
        with torch.no_grad():
            teacher.first.bias[0] += 1e-6

    for change in (set_scale, set_bias):
        assert run(change=change)[0] == 8
    assert run(replace(QUICK, hidden=1.0))[0] == 8
    assert run()[0] == 0


@pytest.mark.parametrize("damage", ["cut off", "a bit", "empty", "of another batch", "no tensors", "a folder", "more"])
def test_a_damaged_file_is_a_miss(run: Run, tmp_path: Path, damage: str) -> None:
    _, plain = run()
    path, other = files(tmp_path)[:2]
    whole = path.read_bytes()
    match damage:
        case "cut off":
            path.write_bytes(whole[:-9])
        case "a bit":
            at = len(whole) - 40
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        case "empty":
            path.write_bytes(b"")
        case "of another batch":
            shutil.copy(other, path)
        case "no tensors":
            path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        case "a folder":
            path.unlink()
            path.mkdir()
        case "more":
            path.write_bytes(whole + b"more")
    runs, found = run()
    assert runs == 1
    assert same(found, plain)
    assert run()[0] == (damage == "a folder")


def test_a_folder_that_cannot_be_written_keeps_nothing(run: Run, tmp_path: Path) -> None:
    _, plain = run(replace(QUICK, remember_disk=0.0))
    (tmp_path / "teacher").write_text("a file of somebody's")
    runs, found = run()
    assert runs == 8
    assert same(found, plain)
    assert (tmp_path / "teacher").read_text() == "a file of somebody's"


def answers(count: int) -> dict[str, dict[str, Tensor]]:
    return {f"{i:032x}": {"output": torch.full((5000,), float(i))} for i in range(count)}


def kept(root: Path, teacher: str, room: int, count: int = 4) -> list[str]:
    """Put answers of 20 kB; return those that are there afterwards."""
    disk = AnswersOnDisk(root, teacher * 32, room, CPU)
    for key, answer in answers(count).items():
        disk.put(key, answer)
    return [key for key in answers(count) if disk.get(key) is not None]


def test_old_teachers_make_room_and_then_it_ends(tmp_path: Path) -> None:
    room = 4 * 24_500  # with more than a header takes
    assert [len(kept(tmp_path, teacher, 2 * room)) for teacher in "ab"] == [4, 4]
    os.utime(tmp_path / ("a" * 32), (1, 1))
    (tmp_path / "notes").mkdir()
    assert len(kept(tmp_path, "c", 3 * room)) == 4  # all three fit
    os.utime(tmp_path / ("b" * 32), (2, 2))
    assert len(kept(tmp_path, "d", 3 * room)) == 4
    assert {path.name[0] for path in tmp_path.iterdir()} == {"b", "c", "d", "n"}
    found = kept(tmp_path, "d", room, count=8)  # its own take all the room
    assert found == list(answers(4))
    assert {path.name[0] for path in tmp_path.iterdir()} == {"d", "n"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_an_answer_is_found_as_it_was(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).mul(10).to(dtype)
    AnswersOnDisk(tmp_path, "a" * 32, 10_000, CPU).put("k", {"b": x.T, "a": x[:0]})
    found = AnswersOnDisk(tmp_path, "a" * 32, 10_000, CPU).get("k")
    assert found is not None
    assert found["b"].dtype == dtype and torch.equal(found["b"], x.T) and found["a"].shape == (0, 7)


def test_a_teachers_digest_is_of_numbers_code_and_threads() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.LayerNorm(4))
    digests = [teacher_digest(teacher, CPU), teacher_digest(deepcopy(teacher), CPU), teacher_digest(teacher, CPU, "x")]
    for change in (nn.GELU(approximate="tanh"), nn.ReLU()):
        teacher[1] = change
        digests.append(teacher_digest(teacher, CPU))
    teacher[2].eps = 1e-3
    digests.append(teacher_digest(teacher, CPU))
    teacher[0].register_buffer("mean", torch.zeros(1))
    digests.append(teacher_digest(teacher.bfloat16(), CPU))
    assert [times for _, times in Counter(digests).most_common()] == [2, 1, 1, 1, 1, 1]
    assert digests[0] == digests[1]


class _StoppedError(Exception):
    pass


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the runs of BERTs whose layers are torch's own: teachers."""
    runs: list[int] = []

    def hook(module: nn.Module, *_: object) -> None:
        if isinstance(module, BertModel) and type(module.encoder.layer[0].attention.self.query) is nn.Linear:
            runs.append(1)

    handle = register_module_forward_hook(hook)
    try:
        yield runs
    finally:
        handle.remove()


def test_a_resumed_training_finds_the_answers(artifact: Artifact, source: Source, texts: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, steps=12, check_every=6, held_out=0.2, keep_every=5, relations=0.5)
    state, cache = tmp_path / "state", tmp_path / "cache"

    def stop(report: TrainingReport) -> None:
        if report.step == 7:
            raise _StoppedError

    whole = recover(artifact, source, texts, settings, beside=tmp_path)
    with counted() as runs, pytest.raises(_StoppedError):
        recover(artifact, source, texts, settings, beside=tmp_path, state=state, cache=cache, watch=stop)
    assert len(runs) > 7
    with counted() as runs:
        resumed = recover(artifact, source, texts, settings, beside=tmp_path, state=state, cache=cache)
    assert len(runs) == settings.steps - 7  # those of steps that had not been made
    with counted() as runs:
        again = recover(artifact, source, texts, settings, beside=tmp_path, cache=cache)
    assert runs == []
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for found, path in zip((whole, resumed, again), paths, strict=True):
        write_artifact(found.artifact, path)
    assert len({path.read_bytes() for path in paths}) == 1


def test_less_than_no_room_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`remember_disk` -1\.0: must be 0 or more"):
        replace(QUICK, remember_disk=-1.0)
