"""One kind of linear layer, whatever the model was written with."""

from __future__ import annotations

from torch import nn

__all__ = ["use_linears"]


def use_linears(model: nn.Module) -> None:
    """Put `nn.Linear` where transformers' Conv1D computes the same with its weight the other way; changes the model."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers"):
            weight = module.get_parameter("weight")
            linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
            linear.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
            linear.bias = module.get_parameter("bias")
            model.set_submodule(name, linear.train(module.training))
