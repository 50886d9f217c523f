"""The operator: a structure, its numbers, and the two ways to apply them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spm_compress.operator.block_products import Products, chain_blocks, coefficients
from spm_compress.operator.pairing import partner
from spm_compress.operator.paths import Paths
from spm_compress.operator.structure import Structure

__all__ = ["SPM", "FusedPlan", "GroupMap", "Numbers", "apply_stages", "low_rank", "resize"]

Numbers = Sequence[Mapping[str, Tensor]]
# (state (..., features, rows), which feature goes to each slot) -> the slots (..., slots, rows), mixed
GroupMap = Callable[[Tensor, Tensor | None], Tensor]


def resize(x: Tensor, width: int) -> Tensor:
    """Repeat or fold the features of x (..., n, rows) to (..., width, rows).

    Wider: feature j is x[j mod n]. Narrower: the sum of all features equal to j modulo width.
    """
    n = x.shape[-2]
    if n == width:
        return x
    if n < width:
        return x.index_select(-2, torch.arange(width, device=x.device) % n)
    missing = -n % width
    padded = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return padded.reshape(*x.shape[:-2], -1, width, x.shape[-1]).sum(-3)


def apply_stages(structure: Structure, numbers: Numbers, x: Tensor) -> Tensor:
    """Apply the map stage by stage, literally as it is defined: (..., in, rows) -> (..., out, rows)."""
    begin = x
    for chain, named in zip(structure.chains, numbers, strict=False):
        x = resize(x, chain.width)
        direct, cross = coefficients(chain, structure.mixer, named)
        diagonals = named["diagonals"].unbind(-2) if chain.diagonals else ()
        scale = dict(zip(chain.diagonals, diagonals, strict=True))
        stage = 0
        for boundary, group in enumerate(chain.groups):
            if boundary in scale:
                x = scale[boundary].unsqueeze(-1) * x
            x = x.index_select(-2, group.order.indices(chain.width).to(x.device))
            for stride in group.strides:
                swapped = x.index_select(-2, partner(chain.width, stride).to(x.device))
                x = direct[..., stage, :, None] * x + cross[..., stage, :, None] * swapped
                stage += 1
        if len(chain.groups) in scale:
            x = scale[len(chain.groups)].unsqueeze(-1) * x
    term = low_rank(structure, numbers)
    if term is None:
        return resize(x, structure.out_features)
    added = term[0] @ (term[1] @ begin)
    return added + resize(x, structure.out_features) if structure.chains else added


def low_rank(structure: Structure, numbers: Numbers) -> tuple[Tensor, Tensor] | None:
    """Return the low-rank term's left (..., out, rank) and right (..., rank, in), None where there is none."""
    return (numbers[-1]["left"], numbers[-1]["right"]) if structure.rank else None


class FusedPlan:
    """Index tables with which a structure runs group by group, each as one batched MatMul.

    Orders, padding, widening and the way from one group's slots to the next one's are one gather a
    group. Built once a structure. `tables` has an index tensor, or None where it would change nothing, for
    every gather in the order of use, so that a module can keep them on its device. `paths` leads through the
    first two groups at once, where there are two with full blocks.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.tables: list[Tensor | None] = []
        where = torch.arange(structure.in_features)  # row of the state that holds each position
        width = rows = structure.in_features
        for chain in structure.chains:
            where, rows = self._resize(where, rows, width, chain.width)
            width = chain.width
            for group in chain.groups:
                members = group.members(width)
                order = group.order.indices(width)
                self._gather(where[order[members.clamp(max=width - 1)]].flatten(), rows)
                flat, rows = members.flatten(), members.numel()
                where = torch.empty(width, dtype=torch.int64)
                where[flat[flat < width]] = torch.arange(rows)[flat < width]
        where, rows = self._resize(where, rows, width, structure.out_features)
        self._gather(where, rows)
        self.paths = self._paths()

    def _paths(self) -> Paths | None:
        chain = self.structure.chains[0] if self.structure.chains else None
        if chain is None or len(chain.groups) < 2 or chain.width < self.structure.in_features:
            return None
        first, second = chain.groups[:2]
        if any(chain.width % (group.low * group.block) for group in (first, second)):
            return None
        source, links = (torch.arange(chain.width) if table is None else table for table in self.tables[:2])
        return Paths.between(source, links, self.structure.in_features, first.block, second.block)

    def _resize(self, where: Tensor, rows: int, width: int, new: int) -> tuple[Tensor, int]:
        if new < width:
            self._gather(where, rows)  # positions in their order before they are folded
            return torch.arange(new), new
        return where[torch.arange(new) % width], rows

    def _gather(self, table: Tensor, rows: int) -> None:
        self.tables.append(None if torch.equal(table, torch.arange(rows)) else table)

    def to(self, device: torch.device) -> FusedPlan:
        """Move the tables, in place, and return the plan."""
        self.tables = [table if table is None else table.to(device) for table in self.tables]
        self.paths = None if self.paths is None else self.paths.to(device)
        return self

    def blocks(self, numbers: Numbers, products: Products = chain_blocks) -> list[list[Tensor]]:
        """Return, chain by chain, the groups' (..., blocks, block, block), diagonals included; the low-rank term last.

        products: how the stages of a chain's groups are multiplied out.
        """
        fused = []
        for chain, named in zip(self.structure.chains, numbers, strict=False):
            direct, cross = coefficients(chain, self.structure.mixer, named)
            groups = []
            diagonals = named["diagonals"].unbind(-2) if chain.diagonals else ()
            for boundary, product in enumerate(products(chain, direct, cross)):
                group = chain.groups[boundary]
                last = boundary + 1 == len(chain.groups)
                for at, diagonal in zip(chain.diagonals, diagonals, strict=True):
                    members = group.members(chain.width).clamp(max=chain.width - 1).to(direct.device)
                    if at == boundary:
                        order = group.order.indices(chain.width).to(direct.device)
                        product = product * diagonal[..., order[members]].unsqueeze(-2)
                    elif at == boundary + 1 and last:
                        product = product * diagonal[..., members].unsqueeze(-1)
                groups.append(product)
            fused.append(groups)
        term = low_rank(self.structure, numbers)
        return fused if term is None else [*fused, [*term]]

    def apply(
        self, fused: Sequence[Sequence[Tensor | GroupMap]], x: Tensor, moved: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Apply the map group by group: (..., in, rows) -> (..., out, rows).

        fused: `blocks`, or functions in the places of the groups' blocks. moved: the tables where a module keeps
        them, on the device of x.
        """
        if not self.structure.rank:
            return self._run(fused, x, iter(self.tables if moved is None else moved))
        *chains, (left, right) = fused
        added = left @ (right @ x)  # type: ignore[operator]
        return added + self._run(chains, x, iter(self.tables if moved is None else moved)) if chains else added

    def dense(self, fused: list[list[Tensor]], moved: Sequence[Tensor | None] | None = None) -> Tensor:
        """Return the matrix (..., out, in): as `apply` on the identity, the first group without a product."""
        if self.structure.rank:
            *chains, (left, right) = fused
            added = left @ right
            return added + self._dense(chains, moved) if chains else added
        return self._dense(fused, moved)

    @property
    def reach(self) -> Paths | None:
        """The paths where they are the whole map: every other entry of its matrix is zero, whatever the numbers."""
        chains = self.structure.chains
        whole = len(chains) == 1 and len(chains[0].groups) == 2 and chains[0].width == self.structure.out_features
        return self.paths if whole and not self.structure.rank else None

    def reached(self, matrix: Tensor) -> Tensor:
        """Return the entries of matrix (..., out, in) within `reach`, as its tiles (..., t, b, b)."""
        assert self.paths is not None
        table = self.tables[-1]
        return self.paths.take(matrix if table is None else matrix.index_select(-2, torch.argsort(table)))

    def _dense(self, fused: list[list[Tensor]], moved: Sequence[Tensor | None] | None) -> Tensor:
        tables = iter(self.tables if moved is None else moved)
        width = self.structure.in_features
        first = fused[0][0]  # (..., blocks, b, b)
        if self.paths is not None:
            paths = self.paths.to(first.device)
            next(tables), next(tables)
            return self._run(fused, paths.dense(paths.product(first, fused[0][1])), tables, done=2)
        if width > self.structure.widths[1]:
            eye = torch.eye(width, dtype=first.dtype, device=first.device)
            return self._run(fused, eye, tables)
        table = next(tables)
        rows = first.shape[-3] * first.shape[-2]
        source = torch.arange(rows) if table is None else table  # the input feature in each slot
        column = source.reshape(first.shape[-3], 1, first.shape[-1]).expand(first.shape[-3:]).to(first.device)
        state = first.new_zeros(*first.shape[:-3], *first.shape[-3:-1], width)
        state = state.scatter_add(-1, column.expand_as(first), first).flatten(-3, -2)
        return self._run(fused, state, tables, done=1)

    def _run(
        self, fused: Sequence[Sequence[Tensor | GroupMap]], x: Tensor, tables: Iterator[Tensor | None], done: int = 0
    ) -> Tensor:
        widths = self.structure.widths
        for groups, width, after in zip(fused, widths, widths[1:], strict=False):
            if width > after:
                x = resize(_take(x, next(tables)), after)
            for group in groups[done:]:
                table = next(tables)
                x = _multiplied(group, x, table) if isinstance(group, Tensor) else group(x, table)
            done = 0
        if widths[-2] > widths[-1]:
            x = resize(_take(x, next(tables)), widths[-1])
        return _take(x, next(tables))


def _multiplied(product: Tensor, x: Tensor, table: Tensor | None) -> Tensor:
    """Return the slots of a group after its blocks (..., blocks, block, block)."""
    x = _take(x, table)
    x = x.reshape(*x.shape[:-2], *product.shape[-3:-1], x.shape[-1])
    return (product @ x).flatten(-3, -2)


def _take(x: Tensor, table: Tensor | None) -> Tensor:
    return x if table is None else x.index_select(-2, table)


@dataclass(frozen=True)
class SPM:
    """One linear map as a chain of mixing stages.

    structure: the layout; numbers: name -> array as `structure.shapes()` says.
    """

    structure: Structure
    numbers: Numbers

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features), as torch writes a weight."""
        return self.structure.out_features, self.structure.in_features

    @property
    def parameter_count(self) -> int:
        """Numbers stored."""
        return self.structure.parameter_count

    @property
    def low_rank_numbers(self) -> list[Mapping[str, Tensor]]:
        """The numbers that follow those of the chains: the low-rank term's, if there is one."""
        return list(self.numbers[len(self.structure.chains) :])

    def matmul(self, x: Tensor) -> Tensor:
        """Return W x for x (in_features, rows), group by group."""
        plan = self._plan()
        return plan.apply(plan.blocks(self.numbers), x)

    def to_dense(self) -> Tensor:
        """Return W (out_features, in_features)."""
        plan = self._plan()
        return plan.dense(plan.blocks(self.numbers))

    def _plan(self) -> FusedPlan:
        """Return a plan with its tables where the numbers are."""
        return FusedPlan(self.structure).to(next(x.device for named in self.numbers for x in named.values()))

    def to(self, dtype: torch.dtype) -> SPM:
        """Return the same operator with its numbers in another dtype."""
        return SPM(self.structure, [{k: v.to(dtype) for k, v in named.items()} for named in self.numbers])
