"""What ONNX Runtime makes of stored numbers when it loads a model, and what is too large for that.

From 1.27 on it folds no node whose outputs take more than a gigabyte together, whatever goes in (session option
`optimization.constant_folding_max_output_size_in_bytes`); such a node, and all that comes after it, runs at every
inference. 1.22 has no limit. So matrices that are only multiplied with are written in pieces, each of some rows, and a
lowering whose values come in no pieces is not offered beyond the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from spm_compress.errors import ExportError
from spm_compress.forms.dense import Dense as DenseForm
from spm_compress.forms.form import Form
from spm_compress.forms.lowering import Dense, Layout, Lowering, NBits, Rows
from spm_compress.forms.stored import StoredOperator

__all__ = ["foldable", "in_pieces", "most_maps", "pieced", "require_foldable"]

# Bytes.
_LIMIT = 1 << 30
# Of it, what layers that are alike may take together: ONNX Runtime keeps every value that it folds for a while.
_TOGETHER = 4
# Unpacking may make a row longer by that much before it is cut: one less than there are codes in a byte.
_UNPACKED = 7


def foldable(form: Form, lowerings: Iterable[Lowering]) -> list[Lowering]:
    """Return those lowerings of which ONNX Runtime makes everything at load that it can, for float32 activations."""
    return [each for each in lowerings if _bytes(form, pieced(form, each), 4) <= _LIMIT]


def require_foldable(layer: str, form: Form, lowering: Lowering, item: int) -> None:
    """Raise ExportError where a lowering makes values beyond the limit at load. item: bytes of a coefficient."""
    size = _bytes(form, lowering, item)
    if size > _LIMIT:
        matrix = "its matrix" if lowering.layout is None else f"what `{lowering.name}` makes of it"
        raise ExportError(
            f"{layer}: {matrix} takes {size / 2**30:,.2f} GiB, and beyond {_LIMIT / 2**30:g} GiB ONNX Runtime would "
            "make it at every run; let it run in another `lowering`, or leave it out of the fit with `exclude`"
        )


def pieced(form: Form, lowering: Lowering, item: int = 4) -> Lowering:
    """Return how a product is written in a lowering: with pieces where the matrix of a dense map would be too large."""
    if isinstance(form, DenseForm) and isinstance(lowering, Dense) and _bytes(form, lowering, item) > _LIMIT:
        return Dense(Layout.FEATURES_LAST)
    return lowering


def in_pieces(stored: StoredOperator, lowering: Lowering, item: int) -> StoredOperator:
    """Return an operator as its parts are written: a matrix NAME that is too large as `0.NAME`, `1.NAME`, ...

    Each piece has rows of it. What `Rows` and `NBits` start from is never unpacked as a whole, and stays whole, as does
    what a matrix is made of.
    """
    if isinstance(lowering, Rows | NBits) or lowering.layout is None:
        return stored
    arrays = {}
    for name, array in stored.arrays.items():
        rows = array.shape[0]
        count = math.ceil(rows / max(1, _LIMIT // (item * (array.shape[-1] + _UNPACKED))))
        if name not in stored.form.matrices or count == 1:
            arrays[name] = array
            continue
        part, dot, own = name.rpartition(".")
        each = math.ceil(rows / count)
        for i, start in enumerate(range(0, rows, each)):
            arrays[f"{part}{dot}{i}.{own}"] = array.rows(start, min(start + each, rows))
    return StoredOperator(stored.form, arrays)


def most_maps(form: Form, lowering: Lowering, item: int) -> int:
    """Return how many maps of a form ONNX Runtime may make together, at least one."""
    largest = max(_bytes(form, lowering, item), item * form.out_features * form.in_features)
    return max(1, _LIMIT // _TOGETHER // largest)


def _bytes(form: Form, lowering: Lowering, item: int) -> int:
    """Return the most bytes of a value that is made of one map at load; of a matrix in pieces, of a row."""
    unpacked = () if isinstance(lowering, Rows | NBits) else form.shapes
    may_split = form.matrices if lowering.layout is not None else ()
    stored = [
        (1 if name in may_split else math.prod(form.shapes[name][:-1])) * (form.shapes[name][-1] + _UNPACKED)
        for name in unpacked
    ]
    return item * max(form.folded(lowering), *stored, 0)
