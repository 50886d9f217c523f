"""What a trace says a module does with its parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spm_compress.checkpoint.tensor_info import Role
from spm_compress.checkpoint.trace import module_roles


class Uses(nn.Module):
    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.use = nn.Parameter(torch.randn(64, 64)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.w)


USES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Role]] = {
    "linear": (F.linear, Role.MAP),
    "from the right": (lambda x, w: x @ w, Role.MAP),
    "from the left": (lambda x, w: (w @ x.T).T, Role.MAP),
    "a copy": (lambda x, w: (x.double() @ w.double().T).float(), Role.MAP),
    "rows": (lambda x, w: w[x[:, 0].long().clamp(0, 63)], Role.TABLE),
    "embedding": (lambda x, w: F.embedding(x[:, 0].long().clamp(0, 63), w) @ w.T, Role.TABLE),
    "parts": (lambda x, w: torch.cat([F.linear(x, each) for each in w.chunk(2)], 1), Role.OTHER),
    "a sum": (lambda x, w: x[:, :, None] + w, Role.OTHER),
    "scaled": (lambda x, w: F.linear(x, w * 2), Role.OTHER),
    "data": (lambda x, w: F.linear(w, w), Role.OTHER),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", USES)
def test_a_parameter_is_what_the_model_does_with_it(kind: str, device: str) -> None:
    use, role = USES[kind]
    x = torch.ones(3, 64, device=device)
    found, reason = module_roles(Uses(use).to(device), lambda module: module(x))["w"]
    assert found is role
    assert bool(reason) == (role is not Role.MAP)


def test_attention_takes_its_projection_whole_or_in_parts() -> None:
    model = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    x, other = torch.ones(2, 5, 64), torch.ones(2, 7, 64)
    whole = module_roles(model, lambda module: module(x, x, x, need_weights=False))
    parts = module_roles(model, lambda module: module(x, other, other, need_weights=False))
    assert whole["in_proj_weight"][0] is Role.MAP
    assert parts["in_proj_weight"][0] is Role.OTHER
    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True).eval()  # runs as one fused operator
    roles = module_roles(layer, lambda module: module(x))
    assert {name: role for name, (role, _) in roles.items()} == dict.fromkeys(
        ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"), Role.MAP
    )


def test_weights_of_recurrent_modules_stay() -> None:
    roles = module_roles(nn.LSTM(64, 64, batch_first=True), lambda module: module(torch.ones(2, 3, 64)))
    assert {roles[name][0] for name in ("weight_ih_l0", "weight_hh_l0")} == {Role.OTHER}
    cell = module_roles(nn.LSTMCell(64, 64), lambda module: module(torch.ones(2, 64)))
    assert {role for role, _ in cell.values()} == {Role.MAP}


def test_what_a_whole_run_does_not_use_is_said_and_what_a_broken_one_did_not_reach_is_not() -> None:
    class Net(nn.Module):
        def __init__(self, is_broken: bool) -> None:
            super().__init__()
            self.a, self.b, self.is_broken = nn.Linear(64, 64), nn.Linear(64, 64), is_broken

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x)
            if self.is_broken:
                raise RuntimeError
            return y

    x = torch.ones(2, 64)
    assert module_roles(Net(False), lambda module: module(x))["b.weight"][0] is Role.OTHER
    assert module_roles(Net(True), lambda module: module(x))["b.weight"][0] is Role.MAP


def test_an_embedding_that_is_read_whole_is_a_table() -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.l = nn.Embedding(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.e.weight + self.l(x)  # type: ignore[no-any-return]

    assert module_roles(Relative(), lambda module: module(torch.ones(2, 64)))["e.weight"][0] is Role.TABLE
