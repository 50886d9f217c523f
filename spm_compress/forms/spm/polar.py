"""Stages as angles of a few bits, rounded one after the other, each given what rounding made of those before.

Of a general stage y_i = d_i x_i + c_i x_p every row may be scaled freely, the next stage takes the factor. So only the
direction of (d_i, c_i) is stored, c_i >= 0: one angle in [0, pi). The scales that are left stand once, at the end (the
polar gauge). Rotations have their angle already.

Exact and rounded states of the identity (or of a square root of the metric) go through the chain side by side. At each
stage the angle is that of the best combination of the *rounded* states, in closed form, before it is rounded itself
(handing the error on: Gribonval, Mary, Riccietti, hal-04125381), and so are the scales between and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.codecs import Angle
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.threads import one_thread
from spm_compress.forms.form import Arrays, Operator, prefixed
from spm_compress.forms.spm.block_products import coefficients
from spm_compress.forms.spm.canonical import to_general
from spm_compress.forms.spm.pairing import partner
from spm_compress.forms.spm.plan import resize
from spm_compress.forms.spm.structure import Chain, Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["rounded_in_turn"]

# Of the mean square, so that states that are nearly the same one leave a system that can be solved.
_RIDGE = 1e-10


def rounded_in_turn(structure: SPM, stored: SPM, arrays: Arrays, codec: Angle, target: Objective | None) -> Operator:
    """Return the map in the form `stored`, its angles as the codec rounds them, with the scales that suit them best.

    stored: rotations as they are, general stages in the polar gauge. target: as in `Form.store`. In float64 on the CPU.
    """
    if structure.mixer is Mixer.GENERAL:
        structure, arrays = (made := to_general(structure, arrays)).form, made.arrays  # type: ignore[assignment]
    dtype = next(iter(arrays.values())).dtype
    by_chain = structure.by_chain({name: array.detach().double().cpu() for name, array in arrays.items()})
    with one_thread():
        walk = _Walk(structure, codec, target)
        found = [walk.through(i, own, stored.chains[i]) for i, own in enumerate(by_chain)]
    return Operator(stored, {name: array.to(dtype) for name, array in prefixed(found).items()})


class _Walk:
    """The exact and the rounded state, (width, probes), on their way through the chains."""

    def __init__(self, structure: SPM, codec: Angle, target: Objective | None) -> None:
        self.structure = structure
        self.codec = codec
        self.wanted: Tensor | None = None
        probes = torch.eye(structure.in_features, dtype=torch.float64)
        if target is not None:
            if target.metric is not None:
                probes = torch.linalg.cholesky(target.metric[0].double().cpu())
            self.wanted = target.weights[0].double().cpu() @ probes
        self.exact = self.rounded = probes

    def through(self, i: int, numbers: Mapping[str, Tensor], stored: Chain) -> dict[str, Tensor]:
        """Take both states through chain i and return its arrays as they are stored."""
        chain = self.structure.chains[i]
        self.exact, self.rounded = resize(self.exact, chain.width), resize(self.rounded, chain.width)
        diagonal, off_diagonal = coefficients(chain, numbers)
        given = dict(zip(chain.scales, numbers["scales"] if chain.scales else (), strict=True))
        angles, scales = [], []
        stage = 0
        for boundary in range(len(chain.groups) + 1):
            is_last = boundary == len(chain.groups)
            if boundary in given:
                self.exact = given[boundary][:, None] * self.exact
            if boundary in stored.scales:
                scales.append(self._scale(self._after(i) if is_last else self.exact))
            if is_last:
                break
            group = chain.groups[boundary]
            order = group.order.indices(chain.width)
            self.exact, self.rounded = self.exact[order], self.rounded[order]
            for stride in group.strides:
                other = partner(chain.width, stride)
                self.exact = diagonal[stage][:, None] * self.exact + off_diagonal[stage][:, None] * self.exact[other]
                angles.append(self._mixed(other, stride))
                stage += 1
        name = "directions" if self.structure.mixer is Mixer.GENERAL else "angles"
        found = {name: torch.stack(angles) if name == "directions" else torch.cat(angles)}
        if stored.scales:
            found["scales"] = torch.stack(scales)
        return found

    def _after(self, i: int) -> Tensor:
        """Return the state that the end of chain i leads to."""
        widths = self.structure.widths
        is_last = i + 1 == len(self.structure.chains)
        if is_last and self.wanted is not None:
            return self.wanted
        after: Tensor = resize(self.exact, widths[i + 2])
        return after

    def _scale(self, wanted: Tensor) -> Tensor:
        """Scale the rounded state so that, resized as that is, it is nearest to a wanted state; return the scales."""
        width, after = len(self.rounded), len(wanted)
        if after > width:  # each feature goes to several places: their mean
            folded = resize(wanted, width)
            wanted = folded / resize(torch.ones(after, 1, dtype=torch.float64), width)
            after = width
        terms = -(-width // after)  # features that are summed
        missing = terms * after - width
        parts = torch.nn.functional.pad(self.rounded, (0, 0, 0, missing)).reshape(terms, after, -1).transpose(0, 1)
        gram = parts @ parts.mT  # (after, terms, terms)
        ridge = _RIDGE * gram.diagonal(dim1=-2, dim2=-1).mean(-1)
        gram = gram + torch.diag_embed(torch.where(ridge > 0, ridge, 1)[:, None].expand(-1, terms))
        found: Tensor = torch.linalg.solve(gram, parts @ wanted[..., None]).squeeze(-1).T.flatten()[:width]
        self.rounded = found[:, None] * self.rounded
        return found

    def _mixed(self, other: Tensor, stride: int) -> Tensor:
        """Take the rounded state through a stage and return its angles."""
        if self.structure.mixer is Mixer.ROTATION:
            return self._rotated(other, stride)
        own, mate = self.rounded, self.rounded[other]
        is_paired = other != torch.arange(len(other))
        power, mates, both = (own * own).sum(1), (mate * mate).sum(1), (own * mate).sum(1)
        first, second = (own * self.exact).sum(1), (mate * self.exact).sum(1)
        power, mates = (each + _RIDGE * (power + mates) + 1e-300 for each in (power, mates))
        determinant = power * mates - both * both
        d = (first * mates - second * both) / determinant
        c = (second * power - first * both) / determinant
        angle = torch.atan2(c, d)
        angle = self._rounded(torch.where(angle < 0, angle + math.pi, angle))
        self.rounded = torch.where(
            is_paired[:, None], angle.cos()[:, None] * own + angle.sin()[:, None] * mate, self.rounded
        )
        return angle

    def _rotated(self, other: Tensor, stride: int) -> Tensor:
        position = torch.arange(len(other))
        lower = position[position < other]
        u, v = self.rounded[lower], self.rounded[lower + stride]
        first, second = self.exact[lower], self.exact[lower + stride]
        along = (first * u).sum(1) + (second * v).sum(1)
        across = (second * u).sum(1) - (first * v).sum(1)
        angle = self._rounded(torch.atan2(across, along))
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        self.rounded = self.rounded.clone()
        self.rounded[lower], self.rounded[lower + stride] = cos * u - sin * v, sin * u + cos * v
        return angle

    def _rounded(self, angle: Tensor) -> Tensor:
        """Return angles as the codec decodes them."""
        parts = self.codec.encode(angle[None])
        return self.codec.decode(parts, (1, len(angle)))[0].double()
