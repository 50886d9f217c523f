"""An ONNX file that is called as the torch module it came from."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from spm_compress.calibration.onnx_runner import declared_dtype
from spm_compress.errors import UsageError, near_misses
from spm_compress.export.same_inputs import open_file, run_file

__all__ = ["Answer", "OnnxModule"]


class Answer(OrderedDict[str, Tensor]):
    """Outputs by name, also as attributes, as Hugging Face models answer."""

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"the model has no output {name!r}; its outputs: {', '.join(self)}")


class OnnxModule(nn.Module):
    """Runs a file in ONNX Runtime; called with tensors, by position or by the names of its inputs.

    Inputs are converted to the dtypes that the graph takes. It answers with the outputs by name; called by position, a
    graph with one output answers with that tensor, as a plain module does.
    """

    def __init__(self, path: Path, provider: str = "CPUExecutionProvider") -> None:
        super().__init__()
        self.path = path
        self._session = open_file(path, 0, provider)

    def forward(self, *arrays: Tensor, **named: Tensor) -> Answer | Tensor:
        """Run the model. Raises UsageError for inputs that it does not have, VerificationError if it cannot run."""
        types = {each.name: each.type for each in self._session.get_inputs()}
        known = list(types)
        given = {**dict(zip(known, arrays, strict=False)), **named}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"{self.path}: has no input {name!r}{near_misses(name, known)}; its inputs: {', '.join(known)}"
                )
        inputs = {name: x.detach().cpu().numpy().astype(declared_dtype(types[name])) for name, x in given.items()}
        answer = {name: torch.from_numpy(x) for name, x in run_file(self.path, self._session, inputs).items()}
        return next(iter(answer.values())) if len(answer) == 1 and not named else Answer(answer)
