"""Forms as drop-ins for `torch.nn.Linear`; `SPMLinear` is the one that is made from scratch."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spm_compress.errors import UsageError, first_line
from spm_compress.forms.fit import fit_matrices
from spm_compress.forms.form import Form, Operator, Runner, under
from spm_compress.forms.settings import FitSettings
from spm_compress.forms.spm.form import SPM, build_spm
from spm_compress.forms.spm.pairing import Schedule
from spm_compress.forms.spm.plan import FusedPlan
from spm_compress.forms.spm.structure import Mixer
from spm_compress.forms.sum import SumRunner

if TYPE_CHECKING:
    from spm_compress.layers.kernels import GroupKernels

__all__ = ["FormLinear", "SPMLinear"]

ExecutionPath = Literal["blocks", "stages"]


class FormLinear(nn.Module):
    """Applies y = S x + b, S a form with trainable arrays; called as `torch.nn.Linear`.

    Args:
        form: what S is; bias, device, dtype: as in `torch.nn.Linear`.
        path: "blocks" runs the form's fastest way, "stages" literally as it is defined; the same map, other rounding.

    On a GPU with Triton, which CUDA builds of torch bring along, a group of general stages is a kernel of its own
    (`kernels.py`); where there is none, in float64 and under `torch.compile`, its blocks are multiplied out first.
    The kernels have first derivatives only; path="stages" has all, and works with `torch.func`.

    Shape: (..., in_features) -> (..., out_features), any leading dimensions. float32, float64 and
    bfloat16, autocast. `weight` is the dense matrix, computed when asked for, so modules that
    read it (`nn.MultiheadAttention`) work, at the cost of a dense product.
    """

    def __init__(
        self,
        form: Form,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        path: ExecutionPath = "blocks",
    ) -> None:
        super().__init__()
        self._allocate(form, bias, device, dtype, path)
        if not next(self.arrays.parameters()).is_meta:
            self.reset_parameters()

    def _allocate(
        self,
        form: Form,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        path: ExecutionPath,
    ) -> None:
        if path not in get_args(ExecutionPath):
            raise UsageError(f"path {path!r}: choose one of {', '.join(get_args(ExecutionPath))}")
        self.form = form
        self.path = path
        self.in_features = form.in_features
        self.out_features = form.out_features
        self.arrays = nn.ParameterDict(
            {_key(name): torch.empty(shape, device=device, dtype=dtype) for name, shape in form.shapes.items()}
        )
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype)) if bias else None
        with torch.device("cpu"):  # indices are computed, also where a default device has no memory ("meta")
            self._runner = form.runner()
        self._place_tables()
        self.register_load_state_dict_post_hook(_placed)  # type: ignore[no-untyped-call]

    def _place_tables(self) -> None:
        device = next(self.arrays.parameters()).device
        for i, table in enumerate(self._runner.tables):
            # Never saved: the form says what they are.
            self.register_buffer(f"_table{i}", None if table is None else table.to(device), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FormLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_tables()  # `to_empty` leaves in them what the memory held
        return self

    @staticmethod
    def of(operator: Operator, bias: Tensor | None = None, *, path: ExecutionPath = "blocks") -> FormLinear:
        """Return a layer that holds copies of the operator's arrays and of the bias (out_features,)."""
        kind = SPMLinear if isinstance(operator.form, SPM) else FormLinear
        array = next(iter(operator.arrays.values()))
        layer = kind.__new__(kind)
        nn.Module.__init__(layer)
        layer._allocate(operator.form, bias is not None, array.device, array.dtype, path)
        with torch.no_grad():
            for name, parameter in layer.operator().arrays.items():
                parameter.copy_(operator.arrays[name])
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
        return layer

    @staticmethod
    def in_place_of(
        linear: nn.Linear, operator: Operator, bias_correction: Tensor | None = None, *, is_stored: bool = False
    ) -> FormLinear:
        """Return a layer of the operator's map with the bias, dtype, device and mode of a linear layer.

        bias_correction: (out_features,) that the bias, or a bias of zero, is raised by.
        The operator is taken in the form that trains best: a canonical SPM with twice the numbers, until it is stored;
        with `is_stored` in that which it has, if it trains at all in that.
        """
        operator = operator.to(torch.promote_types(torch.float32, linear.weight.dtype))
        operator = operator if is_stored and operator.form.trains else operator.form.trainable(operator.arrays)
        bias = None if linear.bias is None else linear.bias.detach()
        if bias_correction is not None:
            bias = bias_correction.to(linear.weight) if bias is None else bias + bias_correction.to(bias)
        layer = FormLinear.of(operator.to(linear.weight.dtype), bias)
        return layer.train(linear.training).to(device=linear.weight.device)

    def reset_parameters(self) -> None:
        """Draw numbers for training from scratch, scaled to the variance of a fresh `nn.Linear`."""
        with torch.no_grad():
            drawn = self.operator()
            self.form.draw(drawn.arrays)
            # nn.Linear draws from U(-1/sqrt(in), 1/sqrt(in)): row norm sqrt(1/3) on average.
            norm = drawn.to_dense().double().square().mean(0).sum().sqrt()
            batch = {name: array[None] for name, array in drawn.arrays.items()}
            factor = (math.sqrt(1 / 3) / norm).to(next(iter(batch.values()))).reshape(1)
            for name, array in self.form.scaled(batch, factor).items():
                drawn.arrays[name].copy_(array[0])
            if self.bias is not None:
                bound = 1 / math.sqrt(self.in_features)
                self.bias.uniform_(-bound, bound)

    def names(self) -> dict[str, str]:
        """Return array of the form -> name of the layer's parameter."""
        return {name: f"arrays.{_key(name)}" for name in self.form.shapes}

    def operator(self) -> Operator:
        """Return the operator on the layer's own parameters (no copy; gradients flow)."""
        return Operator(self.form, {name: self.arrays[_key(name)] for name in self.form.shapes})

    @property
    def weight(self) -> Tensor:
        """The dense matrix (out_features, in_features), computed anew at each access."""
        return self._runner.dense(self._runner.prepared(self.operator().arrays), self._tables())

    def _tables(self) -> list[Tensor | None]:
        return [cast("Tensor | None", getattr(self, f"_table{i}")) for i in range(len(self._runner.tables))]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., in_features) -> (..., out_features)."""
        if self.path == "stages":
            return self._mapped(x, lambda rows: self.form.apply(self.operator().arrays, rows))
        return self.fused()(x)

    def fused(self) -> Callable[[Tensor], Tensor]:
        """Return the layer as a function whose blocks are multiplied out once, to be called often, until an update.

        For a cell that applies its layers at every step of a sequence; gradients flow as through the layer. The path is
        "blocks".
        """
        prepared = _prepared(self._runner, self.operator().arrays)
        return functools.partial(self._mapped, apply=lambda rows: self._runner.apply(prepared, rows, self._tables()))

    def _mapped(self, x: Tensor, apply: Callable[[Tensor], Tensor]) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:  # as autocast treats nn.Linear
            x = x.to(torch.get_autocast_dtype(x.device.type))
        dtype = x.dtype
        y = apply(x.reshape(-1, self.in_features).T)  # (out, rows)
        y = y.T.to(dtype).reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Return what `print` shows of the layer."""
        summary = ", ".join(f"{name}={value}" for name, value in self.form.summary.items())
        size = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{size}, form={self.form.kind}{', ' if summary else ''}{summary}"


class SPMLinear(FormLinear):
    """A FormLinear whose form is a Stagewise Pairwise Mixer; constructor and call as `torch.nn.Linear`.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        stages: number of mixing stages; mixer, schedule, block, seed: see `build_spm`; path: see `FormLinear`.

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
        with torch.device("cpu"):
            form = build_spm(
                in_features,
                out_features,
                stages=stages,
                mixer=Mixer(mixer),
                schedule=Schedule(schedule),
                block=block,
                seed=seed,
            )
        super().__init__(form, bias, device, dtype, path=path)

    @classmethod
    def from_linear(cls, linear: nn.Linear, stages: int = 10, *, settings: FitSettings | None = None) -> FormLinear:
        """Return a layer fitted to a linear layer, with its bias, dtype and device.

        settings, if given, takes the place of `stages`; where they allow other forms than an SPM, the layer is of the
        form that was found best. Raises FitError if the weight is not finite.
        """
        (result,) = fit_matrices(linear.weight.detach()[None], settings or FitSettings(stages=stages))
        return FormLinear.in_place_of(linear, result.operator)


def _placed(layer: FormLinear, incompatible: object) -> None:
    """Bring the tables to where the parameters are: those of a layer on "meta" may just have been assigned."""
    del incompatible
    layer._place_tables()


def _key(name: str) -> str:
    """Return an array's name as a parameter's, which has no dots."""
    return name.replace(".", "_")


def _prepared(runner: Runner, arrays: Any) -> Any:
    """Return what the runner needs of the arrays; groups of stages as kernels where there are any for them."""
    if isinstance(runner, SumRunner):
        return [_prepared(part, under(arrays, str(i))) for i, part in enumerate(runner.parts)]
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if isinstance(runner, FusedPlan) and not traced:
        kernels = _kernels(runner, next(iter(arrays.values())))
        if kernels is not None:
            return kernels.maps(arrays)
    return runner.prepared(arrays)


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
