"""A lower bound on the error of every chain of one structure, whatever its numbers.

Cut a chain between two stages: W = after @ before. The stages before the cut join the inputs to connected
components, and those after it the outputs. What leads from component a of the inputs to component b of
the outputs passes the features at the cut that belong to both, k of them; so that block of W has rank k at most.
The blocks tile W, hence the squared error of any such chain is at least the sum over all blocks of the
squared singular values past the first k (Eckart and Young 1936), and the largest such sum over all cuts is a bound.

With strides as pairing and log2 n stages, k = 1 for every block, which is the case of the splits in
`hierarchical.py` (Le, Zheng, Riccietti, Gribonval, arXiv 2110.00483). Once every input reaches every output from
both sides of every cut with as many paths as a block has rows, no block is constrained and the bound is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.forms.spm.pairing import fixed_frame

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["chain_bound"]


def chain_bound(weights: Tensor, structure: SPM) -> Tensor:
    """Return (k,) float64: the relative Frobenius error that no SPM of `structure` goes below, for each weight.

    weights: (k, out_features, in_features), any floating dtype; with fewer rows or columns they count as padded
    with zeros. 0 where no cut constrains the map, and for a zero weight. Exact to the rounding of squared numbers
    in float64, about 1e-7. Any mixer, any schedule.

    Raises FitError if the weights are larger than the structure or hold NaN or infinity.
    """
    if weights.dim() != 3 or weights.shape[1] > structure.out_features or weights.shape[2] > structure.in_features:
        raise FitError(
            f"weights of shape {tuple(weights.shape)} do not fit a structure of "
            f"{structure.out_features}x{structure.in_features}"
        )
    if not bool(weights.isfinite().all()):
        raise FitError("the weight holds NaN or infinite values; repair the model or exclude the layer")
    weights = weights.double()
    norms = torch.linalg.vector_norm(weights, dim=(1, 2))
    weights = weights / torch.where(norms > 0, norms, 1)[:, None, None]
    most = torch.zeros(len(weights), dtype=torch.float64)
    for cut in _cuts(structure):
        most = torch.maximum(most, _lost(weights, cut))
    return most.sqrt()


@dataclass(frozen=True)
class _Cut:
    """inputs (in,), outputs (out,): component of each feature; ranks (output components, input components)."""

    inputs: Tensor
    outputs: Tensor
    ranks: Tensor


def _cuts(structure: SPM) -> Iterator[_Cut]:
    """Yield the cuts between any two stages, and at both ends of every chain.

    Nodes are the input features, the features of every chain in the frame of its first stage, and the
    output features: a stage connects a feature with itself and with its partner, so one node does for all stages.
    """
    widths = structure.widths
    starts = torch.tensor([0, *widths]).cumsum(0).tolist()
    frames = [fixed_frame(chain.groups, chain.width) for chain in structure.chains]
    # where each position stands as it leaves a layer: inputs, chains, each as node numbers
    leaving = [torch.arange(widths[0])]
    leaving += [starts[i + 1] + order for i, (_, order) in enumerate(frames)]
    links = [_resizing(leaving[i], starts[i + 1], widths[i], widths[i + 1]) for i in range(len(widths) - 1)]
    pairings = [
        torch.stack((torch.arange(chain.width).expand_as(partners), partners)) + starts[i + 1]  # (2, stages, width)
        for i, (chain, (partners, _)) in enumerate(zip(structure.chains, frames, strict=True))
    ]
    nodes = torch.arange(starts[-1])
    for i, pairs in enumerate(pairings):
        earlier = [*links[: i + 1], *(each.flatten(1) for each in pairings[:i])]
        later = [*links[i + 1 :], *(each.flatten(1) for each in pairings[i + 1 :])]
        features = slice(starts[i + 1], starts[i + 2])
        stages = list(pairs.unbind(1))  # each (2, width)
        befores = _growing(_components(nodes, torch.cat(earlier, 1)), stages)
        afters = _growing(_components(nodes, torch.cat(later, 1)), stages[::-1])[::-1]
        for before, after in zip(befores, afters, strict=True):
            yield _cut(before[: widths[0]], after[starts[-2] :], before[features], after[features])


def _growing(label: Tensor, stages: list[Tensor]) -> list[Tensor]:
    """Return the components with none, one, two, ... all of the stages."""
    labels = [label]
    for edges in stages:
        labels.append(_components(labels[-1], edges))
    return labels


def _cut(inputs: Tensor, outputs: Tensor, before: Tensor, after: Tensor) -> _Cut:
    names_in, inputs = torch.unique(inputs, return_inverse=True)
    names_out, outputs = torch.unique(outputs, return_inverse=True)
    # Every feature at a cut can be reached from some input and reaches some output.
    a, b = torch.searchsorted(names_in, before), torch.searchsorted(names_out, after)
    ranks = torch.bincount(b * len(names_in) + a, minlength=len(names_in) * len(names_out))
    return _Cut(inputs, outputs, ranks.reshape(len(names_out), len(names_in)))


def _resizing(leaving: Tensor, start: int, n: int, m: int) -> Tensor:
    """Return (2, max(n, m)): the connections between n positions and the m nodes from `start` on (`spm.resize`)."""
    index = torch.arange(max(n, m))
    return torch.stack((leaving[index % n], start + index % m))


def _components(label: Tensor, edges: Tensor) -> Tensor:
    """Return (nodes,) int64: components, by their smallest node, once edges (2, e) join those of `label`."""
    ends = label[edges]  # only the components that were have to be joined
    joined = torch.arange(len(label))
    while True:
        lower = joined[ends].amin(0)
        next_ = joined.scatter_reduce(0, ends[0], lower, "amin").scatter_reduce(0, ends[1], lower, "amin")
        next_ = next_[next_]
        if torch.equal(next_, joined):
            return joined[label]
        joined = next_


def _lost(weights: Tensor, cut: _Cut) -> Tensor:
    """Return (k,): the squared norm of what lies past the ranks of all blocks."""
    lost = weights.new_zeros(len(weights))
    m, n = weights.shape[1:]
    rows_of, columns_of = _by_size(cut.outputs[:m]), _by_size(cut.inputs[:n])
    for names_out, rows in rows_of:  # (components,), (components, r)
        for names_in, columns in columns_of:
            size = min(rows.shape[1], columns.shape[1])
            ranks = cut.ranks[names_out][:, names_in]  # (output components, input components)
            held = ranks < size
            if not bool(held.any()):
                continue
            b, a = held.nonzero(as_tuple=True)
            for weight, total in zip(weights, lost, strict=True):
                blocks = weight[rows[b][:, :, None], columns[a][:, None, :]]  # (blocks, r, c)
                gram = blocks @ blocks.mT if rows.shape[1] <= columns.shape[1] else blocks.mT @ blocks
                if size == 1:  # rank 0: no feature leads through
                    total += gram.sum()
                    continue
                tails = torch.linalg.eigvalsh(gram).clamp(min=0).cumsum(-1)  # smallest first
                total += tails.gather(1, (size - ranks[b, a] - 1)[:, None]).sum()
    return lost


def _by_size(components: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return, for every size of component, the components of it (c,) and their members (c, size)."""
    order = torch.argsort(components, stable=True)
    counts = torch.bincount(components)
    starts = counts.cumsum(0) - counts
    found = []
    for size in torch.unique(counts[counts > 0]).tolist():
        names = (counts == size).nonzero().flatten()
        found.append((names, order[starts[names][:, None] + torch.arange(size)]))
    return found
