"""The relations of attention, and which blocks are compared."""

from __future__ import annotations

import functools
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertModel, DistilBertConfig, DistilBertModel, GPT2Config, GPT2Model, T5Config, T5EncoderModel

from spm_compress import FitSettings, SPMLinear, compress_model
from spm_compress.checkpoint import Artifact, Source
from spm_compress.distill import DistillSettings, TrainingReport, distill, recover
from spm_compress.distill.inside import Inside
from spm_compress.distill.relations import projections, relation_distance
from spm_compress.distill.transformer_blocks import Blocks
from spm_compress.errors import ArtifactError, UsageError

ONE_STEP = DistillSettings(steps=1, batch=4, block_share=0.0, check_every=1)


def expected(x: np.ndarray, target: np.ndarray, lengths: list[int]) -> float:
    """The divergence, head by head and token by token, in float64; x, target: (samples, tokens, features)."""
    found = []
    for one, other, length in zip(x, target, lengths, strict=True):
        for token in range(length):
            heads = []
            for begin in range(0, x.shape[2], 16):
                a, b = (each[:length, begin : begin + 16].astype(np.float64) for each in (one, other))
                rows = [np.exp(each @ each[token] / 4) for each in (a, b)]
                r, t = (row / row.sum() for row in rows)
                heads.append((t * np.log(t / r)).sum())
            found.append(np.mean(heads))
    return float(np.mean(found))


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [32, 24, 7])
def test_relations_are_those_of_the_paper_over_real_tokens(width: int) -> None:
    kinds = ("query.1", "key.1", "value.1", "query.3", "key.3", "value.3")
    student, teacher = ({name: drawn(2, 5, width, seed=s + i) for i, name in enumerate(kinds)} for s in (0, 10))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    loss = float(relation_distance(student, teacher, {"attention_mask": mask}))
    pairs = [(student[name].numpy(), teacher[name].numpy()) for name in kinds]
    assert loss == pytest.approx(sum(expected(*pair, [5, 2]) for pair in pairs) / 2, rel=1e-5)
    whole = float(relation_distance(student, teacher, {}))
    assert whole == pytest.approx(sum(expected(*pair, [5, 5]) for pair in pairs) / 2, rel=1e-5)
    assert abs(whole - loss) > 1e-3 * whole


def test_padding_does_not_count_and_has_no_gradient() -> None:
    target = {"query.0": drawn(2, 4, 32, seed=1)}
    x = drawn(2, 4, 32, seed=2).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])  # of the second sample nothing is real
    batch = {"attention_mask": mask}
    loss = relation_distance({"query.0": x}, target, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    alike = pytest.approx(float(loss.detach()), rel=1e-6)
    assert x.grad is not None
    assert x.grad[0, :3].abs().min() > 0
    assert not x.grad[0, 3].any() and not x.grad[1].any()
    spoiled = torch.where(mask[:, :, None] == 1, x.detach(), 100.0)
    assert float(relation_distance({"query.0": spoiled}, target, batch)) == alike
    assert float(relation_distance(target, target, batch)) == pytest.approx(0, abs=1e-7)


def test_a_fused_layer_is_three() -> None:
    student, teacher = ({name: drawn(2, 5, 32, seed=s + i) for i, name in enumerate("qkv")} for s in (0, 10))
    fused = [{"fused.0": torch.cat([each[name] for name in "qkv"], -1)} for each in (student, teacher)]
    torch.testing.assert_close(relation_distance(*fused, {}), relation_distance(student, teacher, {}))


SMALL: dict[str, Any] = {"vocab_size": 20, "max_position_embeddings": 8}
T5 = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("block", "layers"),
    [
        (
            lambda bert: BertModel.from_pretrained(bert).encoder.layer[0],
            {kind: f"attention.self.{kind}" for kind in ("query", "key", "value")},
        ),
        (
            lambda _: DistilBertModel(DistilBertConfig(dim=16, n_heads=2, n_layers=1, **SMALL)).transformer.layer[0],
            {kind: f"attention.{kind[0]}_lin" for kind in ("query", "key", "value")},
        ),
        (
            lambda _: T5EncoderModel(T5).encoder.block[0],
            {kind: f"layer.0.SelfAttention.{kind[0]}" for kind in ("query", "key", "value")},
        ),
    ],
)
def test_queries_keys_and_values_of_real_models_are_found(block: Any, layers: dict[str, str], bert: Path) -> None:
    assert projections(block(bert)) == layers


def gpt2() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    words = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    teacher = GPT2Model(GPT2Config(n_embd=32, n_head=2, n_layer=2, n_positions=8, **words)).eval()
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=2, block=8, steps=3), include=("*c_attn*",))
    return teacher, student


def test_gpt2_makes_them_in_one_layer() -> None:
    teacher, student = gpt2()
    inside = Inside(Blocks(teacher, student), replace(ONE_STEP, relations=1.0, relation_layers="all"))
    assert inside.names == ["fused.h.0", "fused.h.1"]
    seen: list[TrainingReport] = []
    words = [{"input_ids": torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(i))} for i in range(3)]
    settings = replace(ONE_STEP, steps=20, relations=10.0)
    distill(teacher, student, words[:2], words[2:], settings, watch=seen.append)
    assert seen[-1].loss < seen[0].loss


class Attention(nn.Module):
    """A block whose queries, keys and values are linear layers of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        found: Tensor = x + (q @ k.mT / 32**0.5).softmax(-1) @ v
        return found


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention() for _ in range(3)])

        self.pooler = nn.Linear(32, 32)  # fitted, and no block of attention

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x + self.pooler(x)


@functools.cache
def compressed() -> tuple[Reader, Reader]:
    torch.manual_seed(0)
    teacher = Reader()
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=3, block=8, steps=3))
    return teacher, student


def pair() -> tuple[Reader, Reader]:
    return deepcopy(compressed())


def first_loss(settings: DistillSettings) -> float:
    teacher, student = pair()
    seen: list[TrainingReport] = []
    distill(teacher, student, [drawn(4, 5, 32, seed=0)], [drawn(4, 5, 32, seed=1)], settings, watch=seen.append)
    return seen[0].loss


@pytest.mark.parametrize(("layers", "blocks"), [("last", [2]), ("all", [0, 1, 2]), ("-1,0", [0, 2])])
def test_relations_of_the_chosen_blocks_are_weighed(layers: str, blocks: list[int]) -> None:
    teacher, student = pair()
    x = drawn(4, 5, 32, seed=0)
    found = []
    with torch.no_grad():
        a = b = x
        for i, (of_teacher, of_student) in enumerate(zip(teacher.blocks, student.blocks, strict=True)):
            for name in ("q_proj", "k_proj", "v_proj"):
                target, own = getattr(of_teacher, name)(a), getattr(of_student, name)(b)
                if i in blocks:
                    found.append(expected(own.numpy(), target.numpy(), [5] * 4))
            a, b = of_teacher(a), of_student(b)
    plain = first_loss(ONE_STEP)
    weighed = first_loss(replace(ONE_STEP, relations=2.0, relation_layers=layers))
    assert weighed - plain == pytest.approx(2 * sum(found) / len(blocks), rel=1e-4)


def test_hidden_states_of_the_chosen_blocks_are_weighed() -> None:
    teacher, student = pair()
    x = drawn(4, 5, 32, seed=0)
    with torch.no_grad():
        a, b = teacher.blocks[0](x), student.blocks[0](x)
    error = float((b - a).square().sum() / a.square().sum())
    found = first_loss(replace(ONE_STEP, hidden=1.0, hidden_layers="0")) - first_loss(ONE_STEP)
    assert found == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"relations": 1.0, "relation_layers": "3"},
            r"`relation_layers` 3: there are 3 such blocks .* 0 \(blocks.0\) to 2",
        ),
        ({"hidden": 1.0, "hidden_layers": "0,-5"}, r"`hidden_layers` -5: there are 4 such blocks .* to 3 \(pooler\)"),
        ({"relation_layers": "first"}, "`relation_layers` 'first': must be last, all or numbers of blocks"),
        ({"hidden_layers": "9" * 5000}, "`hidden_layers` '9+': must be last"),
        ({"relations": -1.0}, "`relations` -1.0: must be 0 or more"),
    ],
)
def test_blocks_that_are_not_there_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        first_loss(replace(ONE_STEP, **change))


def test_models_without_attention_are_refused() -> None:
    teacher = nn.Sequential(nn.Linear(32, 32), nn.Tanh())
    student = deepcopy(teacher)
    compress_model(student, settings=FitSettings(stages=4, block=8, steps=10))
    with pytest.raises(
        UsageError, match="`relations`: no block with fitted weights has layers that are called query, key and value"
    ):
        distill(teacher, student, [drawn(4, 32, seed=0)], [drawn(4, 32, seed=1)], replace(ONE_STEP, relations=1.0))
    assert isinstance(student[0], SPMLinear)
    with pytest.raises(UsageError, match=r"the queries of a batch are \(4, 32\), which has no tokens"):
        teacher, student = pair()
        settings = replace(ONE_STEP, relations=1.0)
        distill(teacher, student, [drawn(4, 32, seed=0)], [drawn(4, 5, 32, seed=1)], settings)


class _StoppedError(Exception):
    pass


def test_relations_belong_to_the_state(artifact: Artifact, source: Source, texts: Path, tmp_path: Path) -> None:
    settings = DistillSettings(steps=9, batch=8, check_every=3, keep_every=3, held_out=0.2, relations=0.5, hidden=0.5)

    def stop(report: TrainingReport) -> None:
        if report.step == 5:
            raise _StoppedError

    state = tmp_path / "state"
    whole = recover(artifact, source, texts, settings, beside=tmp_path)
    with pytest.raises(_StoppedError):
        recover(artifact, source, texts, settings, beside=tmp_path, state=state, watch=stop)
    with pytest.raises(ArtifactError, match=r"of another training \(relation_layers was 'last', is 'all'\)"):
        recover(artifact, source, texts, replace(settings, relation_layers="all"), beside=tmp_path, state=state)
    elsewhere = replace(settings, remember=0.0, remember_disk=0.0)  # changes no number
    resumed = recover(artifact, source, texts, elsewhere, beside=tmp_path, state=state)
    for layer, other in zip(whole.artifact.layers, resumed.artifact.layers, strict=True):
        for name, array in layer.stored.arrays.items():
            assert all(torch.equal(x, other.stored.arrays[name].parts[part]) for part, x in array.parts.items())
