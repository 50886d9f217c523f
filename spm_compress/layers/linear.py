"""`SPMLinear`: the operator as a drop-in for `torch.nn.Linear`."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spm_compress.errors import UsageError, first_line
from spm_compress.fitting.fit import fit_matrices
from spm_compress.fitting.settings import FitSettings
from spm_compress.operator.balance import balanced
from spm_compress.operator.block_products import coefficients
from spm_compress.operator.pairing import Schedule
from spm_compress.operator.spm import SPM, FusedPlan, GroupMap, apply_stages, low_rank
from spm_compress.operator.structure import Mixer, Structure, build_structure

if TYPE_CHECKING:
    from spm_compress.layers.kernels import GroupKernels

__all__ = ["SPMLinear"]

ExecutionPath = Literal["blocks", "stages"]
Groups = Sequence[Sequence[Tensor | GroupMap]]


class SPMLinear(nn.Module):
    """Applies y = S x + b, S a Stagewise Pairwise Mixer; constructor and call as `torch.nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        stages: number of mixing stages; mixer, schedule, block, seed: see `build_structure`.
        path: "blocks" runs group by group, "stages" stage by stage; the same map, other rounding.

    On a GPU with Triton, which CUDA builds of torch bring along, a group of general stages is a kernel of its own
    (`kernels.py`); where there is none, in float64 and under `torch.compile`, its blocks are multiplied out first.
    The kernels have first derivatives only; path="stages" has all, and works with `torch.func`.

    Shape: (..., in_features) -> (..., out_features), any leading dimensions. float32, float64 and
    bfloat16, autocast. `weight` is the dense matrix, computed when asked for, so modules that
    read it (`nn.MultiheadAttention`) work, at the cost of a dense product.

    Example:
        >>> layer = SPMLinear(384, 1536, stages=10)
        >>> layer(torch.randn(2, 7, 384)).shape
        torch.Size([2, 7, 1536])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        stages: int = 10,
        mixer: Mixer | str = Mixer.GENERAL,
        schedule: Schedule | str = Schedule.GROUPED,
        block: int = 32,
        seed: int = 0,
        path: ExecutionPath = "blocks",
    ) -> None:
        with torch.device("cpu"):  # indices are computed, also where a default device has no memory ("meta")
            structure = build_structure(
                in_features,
                out_features,
                stages=stages,
                mixer=Mixer(mixer),
                schedule=Schedule(schedule),
                block=block,
                seed=seed,
            )
        super().__init__()
        self._allocate(structure, bias, device, dtype, path)
        if not next(self.chains.parameters()).is_meta:
            self.reset_parameters()

    def _allocate(
        self,
        structure: Structure,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        path: ExecutionPath,
    ) -> None:
        if path not in get_args(ExecutionPath):
            raise UsageError(f"path {path!r}: choose one of {', '.join(get_args(ExecutionPath))}")
        self.structure = structure
        self.path = path
        self.in_features = structure.in_features
        self.out_features = structure.out_features
        self.chains = nn.ModuleList(
            nn.ParameterDict({name: torch.empty(shape, device=device, dtype=dtype) for name, shape in named.items()})
            for named in structure.shapes()
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        with torch.device("cpu"):
            self._plan = FusedPlan(structure)
        device = next(self.chains.parameters()).device
        for i, table in enumerate(self._plan.tables):
            # Moved with the module, never saved: the structure says what they are.
            self.register_buffer(f"_table{i}", None if table is None else table.to(device), persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, stages: int = 10, *, settings: FitSettings | None = None) -> SPMLinear:
        """Return a layer fitted to a linear layer, with its bias, dtype and device.

        settings, if given, takes the place of `stages`. Raises FitError if the weight is not finite.
        """
        (result,) = fit_matrices(linear.weight.detach()[None], settings or FitSettings(stages=stages))
        return cls.in_place_of(linear, result.spm)

    @classmethod
    def in_place_of(cls, linear: nn.Linear, spm: SPM, shift: Tensor | None = None) -> SPMLinear:
        """Return a layer of the operator's map with the bias, dtype, device and mode of a linear layer.

        shift: (out_features,) that the bias, or a bias of zero, is raised by.
        A canonical operator is taken in its balanced form, which trains: twice the numbers, until it is stored.
        """
        spm = spm.to(torch.promote_types(torch.float32, linear.weight.dtype))
        if spm.structure.mixer is Mixer.CANONICAL:
            spm = balanced(spm)
        bias = None if linear.bias is None else linear.bias.detach()
        if shift is not None:
            bias = shift.to(linear.weight) if bias is None else bias + shift.to(bias)
        layer = cls.from_spm(spm.to(linear.weight.dtype), bias)
        return layer.train(linear.training).to(device=linear.weight.device)

    @classmethod
    def from_spm(cls, spm: SPM, bias: Tensor | None = None, *, path: ExecutionPath = "blocks") -> SPMLinear:
        """Return a layer that holds copies of the operator's numbers and of the bias (out_features,)."""
        array = next(array for named in spm.numbers for array in named.values())
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._allocate(spm.structure, bias is not None, array.device, array.dtype, path)
        with torch.no_grad():
            for chain, named in zip(layer._named(), spm.numbers, strict=True):
                for name, parameter in chain.items():
                    parameter.copy_(named[name])
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    def reset_parameters(self) -> None:
        """Draw numbers for training from scratch: rotations, scaled to the variance of a fresh `nn.Linear`."""
        with torch.no_grad():
            for chain, named in zip(self.structure.chains, self._named(), strict=False):
                angles = named["cross"].new_empty(chain.pairs) if "cross" in named else named["angles"]
                angles.uniform_(-math.pi, math.pi)
                if "direct" in named:
                    direct, cross = coefficients(chain, Mixer.ROTATION, {"angles": angles})
                    named["direct"].copy_(direct)
                    named["cross"].copy_(cross)
                elif "cross" in named:  # canonical: close to the identity, where the direct entries are one
                    named["cross"].uniform_(-0.5, 0.5)
                if "diagonals" in named:
                    named["diagonals"].fill_(1.0)
            term = low_rank(self.structure, self._named())
            if term is not None:
                left, right = term
                nn.init.orthogonal_(right)
                # Beside a chain it begins as nothing, as in LoRA; alone it has to pass something on.
                nn.init.zeros_(left) if self.structure.chains else nn.init.orthogonal_(left)
            # nn.Linear draws from U(-1/sqrt(in), 1/sqrt(in)): row norm sqrt(1/3) on average.
            norm = self.spm().to_dense().double().square().mean(0).sum().sqrt() if self.out_features else 1.0
            factor = float(math.sqrt(1 / 3) / norm)
            self._scale(factor)
            if self.bias is not None:
                bound = 1 / math.sqrt(self.in_features)
                self.bias.uniform_(-bound, bound)

    def _scale(self, factor: float) -> None:
        for named in reversed(self._named()):
            if "direct" in named:
                named["direct"][-1] *= factor
                named["cross"][-1] *= factor
                return
            if "diagonals" in named:
                named["diagonals"][-1] *= factor
                return
        self._named()[-1]["left"].mul_(factor)

    def _named(self) -> list[dict[str, Tensor]]:
        return [dict(cast(nn.ParameterDict, chain).items()) for chain in self.chains]

    def spm(self) -> SPM:
        """Return the operator on the layer's own parameters (no copy; gradients flow)."""
        return SPM(self.structure, self._named())

    @property
    def weight(self) -> Tensor:
        """The dense matrix (out_features, in_features), computed anew at each access."""
        return self._plan.dense(self._plan.blocks(self._named()), self._tables())

    def _tables(self) -> list[Tensor | None]:
        return [cast("Tensor | None", getattr(self, f"_table{i}")) for i in range(len(self._plan.tables))]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in_features) -> (..., out_features)."""
        return self._mapped(x, None if self.path == "stages" else self._groups())

    def fused(self) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function whose blocks are multiplied out once, to be called often, until an update.

        For a cell that applies its layers at every step of a sequence; gradients flow as through the layer. The path is
        "blocks".
        """
        return functools.partial(self._mapped, groups=self._groups())

    def _groups(self) -> Groups:
        """Return the groups multiplied out, or as kernels where there are any."""
        named = self._named()
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        kernels = None if traced else _kernels(self._plan, next(iter(named[0].values())))
        return self._plan.blocks(named) if kernels is None else kernels.maps(named)

    def _mapped(self, x: Tensor, groups: Groups | None) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # as autocast treats nn.Linear
            x = x.to(torch.get_autocast_dtype(x.device.type))
        dtype = x.dtype
        rows = x.reshape(-1, self.in_features).T  # (in, rows)
        if groups is None:
            y = apply_stages(self.structure, self._named(), rows)
        else:
            y = self._plan.apply(groups, rows, self._tables())
        y = y.T.to(dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        structure = self.structure
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"stages={structure.stages}, mixer={structure.mixer.value}"
        )


# Beside the layers, not in them: a module that is saved whole must load where there is no Triton.
_PLACED: WeakKeyDictionary[FusedPlan, dict[torch.device, GroupKernels]] = WeakKeyDictionary()


def _kernels(plan: FusedPlan, like: Tensor) -> GroupKernels | None:
    """Return the plan's groups as kernels, if there are some for its structure, the numbers' dtype and their device."""
    if like.device.type != "cuda" or like.dtype == torch.float64:
        return None
    kernels = _kernels_on(like.device)
    if kernels is None or not kernels.serve(plan.structure):
        return None
    placed = _PLACED.setdefault(plan, {})  # the replicas of a module share its plan
    if like.device not in placed:
        placed[like.device] = kernels(plan.structure, like.device)
    return placed[like.device]


@functools.cache
def _kernels_on(device: torch.device) -> type[GroupKernels] | None:
    try:
        from spm_compress.layers.kernels import GroupKernels

        GroupKernels.try_out(device)
    except ModuleNotFoundError:
        return None  # no Triton for this platform
    except Exception as error:  # whatever its compiler, a C compiler and the driver find wrong
        warnings.warn(
            f"{device}: SPM layers run without their kernels, which do not work here ({first_line(error)})",
            stacklevel=2,
        )
        return None
    return GroupKernels
