"""Chains as the manifest of an artifact says them, and back; every number of a stranger is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spm_compress.forms.json_values import whole
from spm_compress.forms.spm.pairing import Affine, Group, Order, Shuffle, Table
from spm_compress.forms.spm.structure import Chain

__all__ = ["chains_json", "read_chains"]

# A width that may be claimed without a number to show for it.
_FREE_WIDTH = 1 << 12


def chains_json(chains: Sequence[Chain]) -> list[dict[str, Any]]:
    """Return JSON values from which, with the stored tables, `read_chains` makes the chains again."""
    return [
        {
            "width": chain.width,
            "scales": chain.scales,
            "groups": [
                {
                    "order": _order_json(group.order),
                    "stages": group.stages,
                    "low": group.low,
                    "descending": group.descending,
                }
                for group in chain.groups
            ],
        }
        for chain in chains
    ]


def _order_json(order: Order) -> Any:
    match order:
        case Affine():
            return [order.multiplier, order.offset]
        case Shuffle():
            return {"shuffle": order.rows}
        case Table():
            return "table"


def read_chains(entries: Sequence[Mapping[str, Any]], tables: Mapping[str, Tensor]) -> tuple[Chain, ...]:
    """Return the chains of entries. tables: of the orders that follow no formula, `<chain>.order.<group>`.

    Raises ValueError, LookupError or TypeError for anything that is no chain, before memory is taken for it.
    """
    chains = []
    for i, chain in enumerate(entries):
        width = whole(chain["width"])
        if width < 1:
            raise ValueError(f"a chain of width {width}")
        groups = tuple(
            _read_group(group, width, tables.get(f"{i}.order.{g}")) for g, group in enumerate(chain["groups"])
        )
        scales = tuple(whole(at) for at in chain["scales"])
        if not any(group.stages for group in groups):
            raise ValueError("a chain without stages")
        if list(scales) != sorted(set(scales) & set(range(len(groups) + 1))):
            raise ValueError("scales that stand at no boundary")
        found = Chain(width, groups, scales)
        # Numbers in the file for the width that it claims: a rotation has some for its pairs only.
        if width > _FREE_WIDTH and found.pairs < width // 4:
            raise ValueError(f"a chain of width {width} with {found.pairs} pairs")
        chains.append(found)
    return tuple(chains)


def _read_group(entry: Mapping[str, Any], width: int, table: Tensor | None) -> Group:
    stages, low = whole(entry["stages"]), whole(entry["low"])
    # Bounds before any power of two is taken of a number that a stranger may have written; a stride as large as the
    # width pairs nothing, and is there at width 1 only.
    fits = 0 <= stages <= width.bit_length() and 1 <= low <= width and (stages < 1 or low << stages < 2 * max(width, 2))
    if not fits or low & (low - 1):
        raise ValueError(f"a group of {stages} stages from stride {low} at width {width}")
    return Group(_read_order(entry["order"], width, table), stages, low, bool(entry["descending"]))


def _read_order(entry: Any, width: int, table: Tensor | None) -> Order:
    if entry == "table":
        # A table of that size first: the width alone costs a stranger nothing.
        features = tuple(table.tolist()) if table is not None and table.shape == (width,) else ()
        if len(features) != width or sorted(features) != list(range(width)):
            raise ValueError("an order is not a permutation")
        return Table(features)
    if isinstance(entry, dict):
        rows = whole(entry["shuffle"])
        if rows < 1 or width % rows:
            raise ValueError(f"a shuffle of {width} features in {rows} rows")
        return Shuffle(rows)
    multiplier, offset = (whole(number) for number in entry)
    # In range before any arithmetic with tensors, whose integers have 64 bits.
    if not 0 < multiplier <= width or not 0 <= offset < width or math.gcd(multiplier, width) != 1:
        raise ValueError(f"order ({multiplier}, {offset}) is not a permutation of {width} features")
    return Affine(multiplier, offset)
