"""Does the ONNX file answer as the torch module in which the same layers were replaced?

The module answers first, so that it need not be in memory together with the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from spm_compress.errors import VerificationError, first_line
from spm_compress.export.verification import Agreement, agreement, run
from spm_compress.quiet import quiet

__all__ = ["LIVE_BATCH", "Answers", "Steps", "answers_of", "steps_of"]

LIVE_BATCH = 3
_STEPS = 4

Answer = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Answers:
    """What a module answers to inputs: its floating-point outputs in their order, or all where it has none."""

    inputs: Mapping[str, Any]
    outputs: Sequence[np.ndarray]

    def agreement(self, runtime: onnxruntime.InferenceSession) -> Agreement:
        """Return how well a file agrees. Raises VerificationError if it has other outputs."""
        found = run(runtime, self.inputs)
        if len(self.outputs) != len(found):
            raise VerificationError(
                f"the file has {len(found)} outputs of numbers and the torch module {len(self.outputs)}; "
                "please report this"
            )
        return agreement(LIVE_BATCH, found, dict(zip(found, self.outputs, strict=True)))


@dataclass(frozen=True)
class Steps:
    """What a decoder answers to tokens in a row, all at once; past: keys and values before the first, of length 0."""

    tokens: np.ndarray
    past: Mapping[str, np.ndarray]
    logits: np.ndarray

    def agreement(self, runtime: onnxruntime.InferenceSession) -> Agreement:
        """Return how well a file agrees that is given token by token, with the keys and values that it gave itself."""
        found: list[np.ndarray] = []
        held = dict(self.past)
        for step in range(self.tokens.shape[1]):
            token = self.tokens[:, step : step + 1]
            mask = np.ones((len(token), step + 1), np.int64)
            outputs = run(runtime, {"input_ids": token, "attention_mask": mask, **held})
            found.append(outputs["logits"])
            held = {name: outputs[name.replace("past_key_values", "present")] for name in held}
        return agreement(LIVE_BATCH, {"logits": np.concatenate(found, axis=1)}, {"logits": self.logits})


def answers_of(answer: Answer, inputs: Mapping[str, Any]) -> Answers:
    """Call a module. Raises VerificationError if it cannot be called with inputs that the graph took."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items() if array is not None}
    answers = _called(answer, given)
    floats = [x for x in answers if x.is_floating_point()]
    return Answers(inputs, [x.numpy() for x in floats or answers])


def steps_of(answer: Answer, example: Mapping[str, Tensor]) -> Steps:
    """Call a decoder with a few tokens. example: inputs as the file takes them. Raises VerificationError as above."""
    generator = torch.Generator().manual_seed(LIVE_BATCH)
    tokens = torch.randint(0, int(example["input_ids"].max()) + 1, (LIVE_BATCH, 1 + _STEPS), generator=generator)
    nothing = {
        name: x[:1, :, :0].expand(LIVE_BATCH, -1, -1, -1).contiguous()
        for name, x in example.items()
        if name.startswith("past_key_values.")
    }
    mask = torch.ones_like(tokens)
    logits = _called(answer, {"input_ids": tokens, "attention_mask": mask, **nothing})[0]
    return Steps(tokens.numpy(), {name: x.numpy() for name, x in nothing.items()}, logits.numpy())


def _called(answer: Answer, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    try:
        with torch.no_grad(), quiet():
            return [x.detach().cpu() for x in answer(inputs)]
    except Exception as error:  # whatever the user's own module raises
        raise VerificationError(
            f"the torch module cannot be called with inputs that its graph takes ({first_line(error)}); give inputs "
            "that it can take with `known`"
        ) from error
