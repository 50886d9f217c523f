"""Groups of stages on a GPU: one launch each way, the state in registers from the first stage to the last.

Multiplied out to blocks, a layer costs about a hundred small launches before the first sample is touched, and a pass
over all samples for every gather and product: on an H100 it is faster than a dense layer only where both are wide
(docs/measurements.md). Here a program loads some samples of a few blocks, mixes them stage by stage, and stores them.
Going back it loads and mixes them again, so that nothing but a group's input is kept. What the numbers got from each
tile of samples is added up afterwards, so a group's sums are the same every time. The arithmetic is
float32, whatever the dtype of the samples.

Triton comes with the CUDA builds of torch. Its interpreter (TRITON_INTERPRET=1) runs the same code on a CPU, slowly.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from spm_compress.forms.form import Arrays
from spm_compress.forms.spm.block_products import coefficients
from spm_compress.forms.spm.form import SPM
from spm_compress.forms.spm.pairing import IDENTITY, Group
from spm_compress.forms.spm.plan import GroupMap

__all__ = ["GroupKernels"]

_SPAN = 32  # slots of a program at least: in float32 one line of memory
_LARGEST = 128  # block that was tried
_TILE = 4096  # numbers of a program: 32 in each of its 128 threads


class GroupKernels:
    """The groups of a structure on one device."""

    def __init__(self, structure: SPM, device: torch.device) -> None:
        self._structure = structure
        self._chains = [[_Group(group, chain.width, device) for group in chain.groups] for chain in structure.chains]

    @staticmethod
    def serve(structure: SPM) -> bool:
        """Say whether the structure is made of what the kernels know: stages in blocks, without scales."""
        blocks = [group.block for chain in structure.chains for group in chain.groups]
        return 0 < max(blocks, default=0) <= _LARGEST and not any(chain.scales for chain in structure.chains)

    @staticmethod
    def try_out(device: torch.device) -> None:
        """Mix one sample, forth and back; raises what keeps a small group's kernels from running on the device."""
        group = _Group(Group(IDENTITY, 1), _SPAN, device)
        with torch.inference_mode(False), torch.enable_grad():  # a first call may come from anywhere
            diagonal, off_diagonal = torch.ones(2, 1, _SPAN, device=device)
            x = torch.ones(_SPAN, 1, device=device, requires_grad=True)
            group(diagonal, off_diagonal, x, None).sum().backward()

    def maps(self, arrays: Arrays) -> list[list[GroupMap]]:
        """Return the groups as functions, in the places where `FusedPlan.prepared` has their blocks."""
        maps: list[list[GroupMap]] = []
        named = self._structure.by_chain(arrays)
        for chain, groups, own in zip(self._structure.chains, self._chains, named, strict=True):
            stages = [group.stages for group in chain.groups]
            parts = (each.split(stages, -2) for each in coefficients(chain, own))
            maps.append([functools.partial(group, *part) for group, *part in zip(groups, *parts, strict=True)])
        return maps


class _Group:
    """One group on a device."""

    def __init__(self, group: Group, width: int, device: torch.device) -> None:
        members = group.members(width).flatten()
        self.stages, self.descending, self.width, self.slots = group.stages, group.descending, width, len(members)
        in_order = torch.equal(members, torch.arange(width))
        self.position = None if in_order else members.to(device)
        self._permutes: bool | None = None

    def __call__(self, diagonal: Tensor, off_diagonal: Tensor, x: Tensor, table: Tensor | None) -> Tensor:
        """Return the slots (slots, rows) after the stages; x: (features, rows), table: (slots,) the feature in each."""
        if not x.is_floating_point() or x.dtype == torch.float64 or x.device != diagonal.device:
            raise TypeError(f"samples in {x.dtype} on {x.device} for numbers in {diagonal.dtype} on {diagonal.device}")
        if table is not None and not (self.stages and self._is_permutation(table, len(x))):
            x, table = x.index_select(0, table), None
        # Turned out here: a view made inside the function could not be changed in place.
        return _Mixed.apply(x, diagonal, off_diagonal, table, self).T if self.stages else x

    def _is_permutation(self, table: Tensor, features: int) -> bool:
        """A kernel can then write the gradient where the input came from: each place once."""
        if self._permutes is None:
            self._permutes = torch.equal(table.sort().values, torch.arange(features, device=table.device))
        return self._permutes

    @property
    def span(self) -> int:
        """Slots of a program: partners are a power of two apart, so any run of blocks is closed."""
        return max(_SPAN, 1 << self.stages)

    def launch(self, kernel: Any, x: Tensor, *arguments: Any) -> None:
        """Run a kernel on x (features, rows) with a program for each span of slots and tile of rows."""
        rows = x.shape[1]
        sizes = {"stages": self.stages, "descending": self.descending, "span": self.span, "tile": self.tile}
        programs = triton.cdiv(self.slots, self.span) * triton.cdiv(rows, self.tile)
        with torch.cuda.device_of(x):  # Triton launches on the current device, whatever its arguments are on
            kernel[(programs,)](x, *x.stride(), *arguments, self.position, rows, self.width, self.slots, **sizes)

    @property
    def tile(self) -> int:
        """Rows of a program."""
        return max(1, _TILE // self.span)


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, diagonal: Tensor, off_diagonal: Tensor, table: Tensor | None, group: _Group
    ) -> Tensor:
        y = x.new_empty(x.shape[1], group.slots)
        group.launch(_forward, x, table, diagonal, off_diagonal, y)
        ctx.save_for_backward(x, diagonal, off_diagonal, table)  # type: ignore[arg-type]  # takes None, too
        ctx.group = group  # type: ignore[attr-defined]
        return y  # (rows, slots)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, diagonal, off_diagonal, table = ctx.saved_tensors  # type: ignore[attr-defined]
        group: _Group = ctx.group  # type: ignore[attr-defined]
        of_x = torch.empty_like(x)
        sums = diagonal.new_empty(triton.cdiv(x.shape[1], group.tile), 2, *diagonal.shape, dtype=torch.float32)
        strided = (gradient, *gradient.T.stride(), of_x, *of_x.stride())
        group.launch(_backward, x, *strided, table, diagonal, off_diagonal, sums)
        of_diagonal, of_off_diagonal = sums.sum(0).to(diagonal.dtype)
        return of_x, of_diagonal, of_off_diagonal, None, None


@triton.jit
def _place(position, table, width, slots, rows, span: tl.constexpr, tile: tl.constexpr):
    """Return this program's slots, the positions (none: `width`) and features in them, its tile, rows, and a mask."""
    spans = tl.cdiv(slots, span)
    slot = tl.program_id(0) % spans * span + tl.arange(0, span)
    place = slot
    if position is not None:
        place = tl.load(position + slot, slot < slots, width)
    row = tl.program_id(0) // spans * tile + tl.arange(0, tile)
    feature = slot
    if table is not None:
        feature = tl.load(table + slot, slot < slots, 0)
    inside = (row[:, None] < rows) & (slot[None, :] < slots)
    part, place = (tl.program_id(0) // spans).to(tl.int64), tl.minimum(place, width)
    return slot.to(tl.int64), place, feature.to(tl.int64), part, row.to(tl.int64), inside


@triton.jit
def _partners(
    x, stage: tl.constexpr, stages: tl.constexpr, descending: tl.constexpr, span: tl.constexpr, tile: tl.constexpr
):
    """Return x (tile, span) with every slot in the place of its partner in a stage.

    (a + b) - a is b, bit for bit, in integers that wrap around; the sum of a pair stays within a warp.
    """
    stride: tl.constexpr = 1 << (stages - 1 - stage if descending else stage)
    bits = tl.reshape(x.to(tl.int32, bitcast=True), (tile, span // (2 * stride), 2, stride))
    return tl.reshape(tl.sum(bits, 2, True) - bits, (tile, span)).to(tl.float32, bitcast=True)


@triton.jit
def _numbers(diagonal, off_diagonal, place, stage: tl.constexpr, width):
    """Return one stage's coefficients, (1, span) each; a slot that stands for no position keeps what it has."""
    d = tl.load(diagonal + stage * width + place, place < width, 1.0)
    c = tl.load(off_diagonal + stage * width + place, place < width, 0.0)
    return d.to(tl.float32)[None, :], c.to(tl.float32)[None, :]


@triton.jit
def _forward(
    x, x_feature, x_row, table, diagonal, off_diagonal, y, position, rows, width, slots,
    stages: tl.constexpr, descending: tl.constexpr, span: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    slot, place, feature, _, row, inside = _place(position, table, width, slots, rows, span, tile)
    state = tl.load(x + row[:, None] * x_row + feature[None, :] * x_feature, inside, 0.0).to(tl.float32)
    for stage in tl.static_range(stages):
        d, c = _numbers(diagonal, off_diagonal, place, stage, width)
        state = d * state + c * _partners(state, stage, stages, descending, span, tile)
    tl.store(y + row[:, None] * slots + slot[None, :], state.to(y.dtype.element_ty), inside)


@triton.jit
def _backward(
    x, x_feature, x_row, gradient, gradient_slot, gradient_row, of_x, of_feature, of_row,
    table, diagonal, off_diagonal, sums, position, rows, width, slots,
    stages: tl.constexpr, descending: tl.constexpr, span: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    slot, place, feature, part, row, inside = _place(position, table, width, slots, rows, span, tile)
    begin = tl.load(x + row[:, None] * x_row + feature[None, :] * x_feature, inside, 0.0).to(tl.float32)
    got = tl.load(gradient + row[:, None] * gradient_row + slot[None, :] * gradient_slot, inside, 0.0).to(tl.float32)
    for stage in tl.static_range(stages - 1, -1, -1):
        state = begin  # mixed once more as far as here: that is cheaper than to keep all of them
        for before in tl.static_range(stage):
            d, c = _numbers(diagonal, off_diagonal, place, before, width)
            state = d * state + c * _partners(state, before, stages, descending, span, tile)
        to = sums + (part * 2 * stages + stage) * width + place
        tl.store(to, tl.sum(got * state, 0), place < width)
        tl.store(
            to + stages * width, tl.sum(got * _partners(state, stage, stages, descending, span, tile), 0), place < width
        )
        d, c = _numbers(diagonal, off_diagonal, place, stage, width)
        got = d * got + _partners(c * got, stage, stages, descending, span, tile)
    tl.store(of_x + row[:, None] * of_row + feature[None, :] * of_feature, got.to(of_x.dtype.element_ty), inside)
