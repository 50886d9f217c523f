"""Structures of mixers as the manifest of an artifact says them, and back; every number of a stranger is checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spm_compress.operator.pairing import Affine, Group, Order, Shuffle, Table
from spm_compress.operator.structure import Chain, Mixer, Structure

__all__ = ["read_structure", "structure_json"]


def structure_json(structure: Structure) -> dict[str, Any]:
    """Return JSON values from which, with the tables in the file, `read_structure` makes the structure again."""
    return {
        "mixer": structure.mixer.value,
        "in_features": structure.in_features,
        "out_features": structure.out_features,
        "rank": structure.rank,
        "chains": [
            {
                "width": chain.width,
                "diagonals": chain.diagonals,
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
            for chain in structure.chains
        ],
    }


def _order_json(order: Order) -> Any:
    match order:
        case Affine():
            return [order.multiplier, order.offset]
        case Shuffle():
            return {"shuffle": order.rows}
        case Table():
            return "table"


def read_structure(entry: Mapping[str, Any], name: str, stem: str, tensors: Mapping[str, Tensor]) -> Structure:
    """Return the structure of the weight `name`, whose tables are among `tensors` under `stem`.

    Raises ValueError, LookupError or TypeError for anything that is no structure, before memory is taken for it.
    """
    chains = []
    for i, chain in enumerate(entry["chains"]):
        width = int(chain["width"])
        if width < 1:
            raise ValueError(f"{name}: a chain of width {width}")
        groups = tuple(
            _read_group(group, width, tensors.get(f"{stem}.{i}.order.{g}")) for g, group in enumerate(chain["groups"])
        )
        diagonals = tuple(int(at) for at in chain["diagonals"])
        if not any(group.stages for group in groups):  # with one, the file holds numbers for every feature of the width
            raise ValueError(f"{name}: a chain without stages")
        if list(diagonals) != sorted(set(diagonals) & set(range(len(groups) + 1))):
            raise ValueError(f"{name}: a diagonal that stands at no boundary")
        chains.append(Chain(width, groups, diagonals))
    into, out, rank = int(entry["in_features"]), int(entry["out_features"]), int(entry.get("rank", 0))
    if not 0 <= rank <= min(into, out) or not (chains or rank):
        raise ValueError(f"{name}: a low-rank term of rank {rank} beside {len(chains)} chains")
    return Structure(Mixer(entry["mixer"]), into, out, tuple(chains), rank)


def _read_group(entry: Mapping[str, Any], width: int, table: Tensor | None) -> Group:
    stages, low = int(entry["stages"]), int(entry["low"])
    # Bounds before any power of two is taken of a number that a stranger may have written.
    if not 0 <= stages <= width.bit_length() or not 1 <= low <= width or low & (low - 1):
        raise ValueError(f"a group of {stages} stages from stride {low} at width {width}")
    return Group(_read_order(entry["order"], width, table), stages, low, bool(entry["descending"]))


def _read_order(entry: Any, width: int, table: Tensor | None) -> Order:
    if entry == "table":
        features = tuple(table.tolist()) if table is not None else ()
        if sorted(features) != list(range(width)):
            raise ValueError("an order is not a permutation")
        return Table(features)
    if isinstance(entry, dict):
        rows = int(entry["shuffle"])
        if rows < 1 or width % rows:
            raise ValueError(f"a shuffle of {width} features in {rows} rows")
        return Shuffle(rows)
    multiplier, offset = (int(number) for number in entry)
    # In range before any arithmetic with tensors, whose integers have 64 bits.
    if not 0 < multiplier <= width or not 0 <= offset < width or math.gcd(multiplier, width) != 1:
        raise ValueError(f"order ({multiplier}, {offset}) is not a permutation of {width} features")
    return Affine(multiplier, offset)
