"""The two ways to apply an SPM: stage by stage, as it is defined, and group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.forms.spm.block_products import Products, chain_blocks, coefficients
from spm_compress.forms.spm.pairing import partner
from spm_compress.forms.spm.paths import Paths

if TYPE_CHECKING:
    from spm_compress.forms.form import Arrays
    from spm_compress.forms.spm.form import SPM
    from spm_compress.forms.spm.structure import Chain

__all__ = ["FusedPlan", "GroupMap", "apply_stages", "resize"]

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
    return padded.reshape(*x.shape[:-2], padded.shape[-2] // width, width, x.shape[-1]).sum(-3)


def apply_stages(structure: SPM, arrays: Arrays, x: Tensor) -> Tensor:
    """Apply the map stage by stage, literally as it is defined: (..., in, rows) -> (..., out, rows)."""
    for chain, named in zip(structure.chains, structure.by_chain(arrays), strict=True):
        x = resize(x, chain.width)
        diagonal, off_diagonal = coefficients(chain, named)
        scales = named["scales"].unbind(-2) if chain.scales else ()
        scale = dict(zip(chain.scales, scales, strict=True))
        stage = 0
        for boundary, group in enumerate(chain.groups):
            if boundary in scale:
                x = scale[boundary].unsqueeze(-1) * x
            x = x.index_select(-2, group.order.indices(chain.width).to(x.device))
            for stride in group.strides:
                swapped = x.index_select(-2, partner(chain.width, stride).to(x.device))
                x = diagonal[..., stage, :, None] * x + off_diagonal[..., stage, :, None] * swapped
                stage += 1
        if len(chain.groups) in scale:
            x = scale[len(chain.groups)].unsqueeze(-1) * x
    return resize(x, structure.out_features)


class FusedPlan:
    """Index tables with which a structure runs group by group, each as one batched MatMul.

    Orders, padding, widening and the way from one group's slots to the next one's are one gather a
    group. Built once a structure. `tables` has an index tensor, or None where it would change nothing, for
    every gather in the order of use, so that a module can keep them on its device. `scaled` has, chain by chain and
    scale by scale, the number of the scale that each slot of its group gets. `paths` leads through the first two groups
    at once, where there are two with full blocks.
    """

    def __init__(self, structure: SPM) -> None:
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
        self.scaled = [[_scaled_slots(chain, at) for at in chain.scales] for chain in structure.chains]
        self.paths = self._paths()

    def _paths(self) -> Paths | None:
        chain = self.structure.chains[0]
        if len(chain.groups) < 2 or chain.width < self.structure.in_features:
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
        self.scaled = [[slots.to(device) for slots in chain] for chain in self.scaled]
        self.paths = None if self.paths is None else self.paths.to(device)
        return self

    def prepared(self, arrays: Arrays, products: Products = chain_blocks) -> list[list[Tensor]]:
        """Return, chain by chain, the groups' blocks (..., blocks, block, block), scales included.

        products: how the stages of a chain's groups are multiplied out.
        """
        fused = []
        chains = zip(self.structure.chains, self.structure.by_chain(arrays), self.scaled, strict=True)
        for chain, named, scaled in chains:
            diagonal, off_diagonal = coefficients(chain, named)
            groups = list(products(chain, diagonal, off_diagonal))
            scales = named["scales"].unbind(-2) if chain.scales else ()
            for at, row, slots in zip(chain.scales, scales, scaled, strict=True):
                own = row[..., slots.to(row.device)]
                if at < len(groups):
                    groups[at] = groups[at] * own.unsqueeze(-2)
                else:
                    groups[-1] = groups[-1] * own.unsqueeze(-1)
            fused.append(groups)
        return fused

    def apply(
        self,
        prepared: Sequence[Sequence[Tensor | GroupMap]],
        x: Tensor,
        tables: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Apply the map group by group: (..., in, rows) -> (..., out, rows).

        prepared: as from `prepared`, or functions in the places of the groups' blocks. tables: those of the plan
        where a module keeps them, on the device of x.
        """
        return self._run(prepared, x, self._tables_on(x, tables))

    def dense(self, prepared: list[list[Tensor]], tables: Sequence[Tensor | None] | None = None) -> Tensor:
        """Return the matrix (..., out, in): as `apply` on the identity, the first group without a product."""
        width = self.structure.in_features
        first = prepared[0][0]  # (..., blocks, b, b)
        given = self._tables_on(first, tables)
        if self.paths is not None:
            paths = self.paths.to(first.device)
            next(given), next(given)
            return self._run(prepared, paths.dense(paths.product(first, prepared[0][1])), given, done=2)
        if width > self.structure.widths[1]:
            eye = torch.eye(width, dtype=first.dtype, device=first.device)
            return self._run(prepared, eye, given)
        table = next(given)
        rows = first.shape[-3] * first.shape[-2]
        source = torch.arange(rows) if table is None else table  # the input feature in each slot
        column = source.reshape(first.shape[-3], 1, first.shape[-1]).expand(first.shape[-3:]).to(first.device)
        state = first.new_zeros(*first.shape[:-3], *first.shape[-3:-1], width)
        state = state.scatter_add(-1, column.expand_as(first), first).flatten(-3, -2)
        return self._run(prepared, state, given, done=1)

    @property
    def reach(self) -> Paths | None:
        """The paths where they are the whole map: every other entry of its matrix is zero, whatever the numbers."""
        chains = self.structure.chains
        whole = len(chains) == 1 and len(chains[0].groups) == 2 and chains[0].width == self.structure.out_features
        return self.paths if whole else None

    def reached(self, matrix: Tensor) -> Tensor:
        """Return the entries of matrix (..., out, in) within `reach`, as its tiles (..., t, b, b)."""
        assert self.paths is not None
        table = self.tables[-1]
        return self.paths.take(matrix if table is None else matrix.index_select(-2, torch.argsort(table)))

    def _tables_on(self, like: Tensor, tables: Sequence[Tensor | None] | None) -> Iterator[Tensor | None]:
        own = self.tables if tables is None else tables
        return (table if table is None else table.to(like.device) for table in own)

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


def _scaled_slots(chain: Chain, at: int) -> Tensor:
    """Return (blocks, block) int64: the feature whose scale each slot has, before group `at` or after the last one."""
    is_last = at == len(chain.groups)
    group = chain.groups[at - is_last]
    members = group.members(chain.width).clamp(max=chain.width - 1)
    return members if is_last else group.order.indices(chain.width)[members]


def _multiplied(product: Tensor, x: Tensor, table: Tensor | None) -> Tensor:
    """Return the slots of a group after its blocks (..., blocks, block, block)."""
    x = _take(x, table)
    x = x.reshape(*x.shape[:-2], *product.shape[-3:-1], x.shape[-1])
    return (product @ x).flatten(-3, -2)


def _take(x: Tensor, table: Tensor | None) -> Tensor:
    return x if table is None else x.index_select(-2, table)
