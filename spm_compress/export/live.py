"""Does the ONNX file answer as the torch module in which the same layers were replaced?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from spm_compress.errors import VerificationError, first_line
from spm_compress.export.verification import Agreement, agreement, run
from spm_compress.quiet import quiet

__all__ = ["LIVE_BATCH", "against_module", "stepwise"]

LIVE_BATCH = 3
_STEPS = 4

Answer = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]


def against_module(runtime: onnxruntime.InferenceSession, answer: Answer, inputs: Mapping[str, Any]) -> Agreement:
    """Compare all floating-point outputs of a file with those of a module, in their order.

    Raises VerificationError if the module cannot be called with inputs that the graph took, or has other outputs.
    """
    found = run(runtime, inputs)
    expected = _called(answer, {name: torch.from_numpy(array) for name, array in inputs.items() if array is not None})
    numbers = [x for x in expected if x.is_floating_point()]
    if len(numbers) != len(found):
        raise VerificationError(
            f"the file has {len(found)} outputs of numbers and the torch module {len(numbers)}; please report this"
        )
    named = {name: x.numpy() for name, x in zip(found, numbers, strict=True)}
    return agreement(LIVE_BATCH, found, named)


def stepwise(runtime: onnxruntime.InferenceSession, answer: Answer, example: Mapping[str, Tensor]) -> Agreement:
    """Compare a decoder with a past, token by token, with a module that is given all tokens at once.

    example: inputs as the file takes them; the past begins empty. The keys and values that the file gives at each step
    are those that it gets at the next.
    """
    past = {name: x[:, :, :0] for name, x in example.items() if name.startswith("past_key_values.")}
    rows = LIVE_BATCH
    generator = torch.Generator().manual_seed(rows)
    most = int(example["input_ids"].max()) + 1
    tokens = torch.randint(0, most, (rows, 1 + _STEPS), generator=generator)
    whole = {name: x[:1].expand(rows, *x.shape[1:]) for name, x in past.items()}
    mask = torch.ones(rows, tokens.shape[1], dtype=torch.int64)
    (expected, *_) = _called(answer, {"input_ids": tokens, "attention_mask": mask, **whole})
    logits: list[np.ndarray] = []
    held: dict[str, Any] = {name: np.ascontiguousarray(x.numpy()) for name, x in whole.items()}
    for step in range(tokens.shape[1]):
        inputs = {
            "input_ids": tokens[:, step : step + 1].numpy(),
            "attention_mask": mask[:, : step + 1].numpy(),
            **held,
        }
        outputs = run(runtime, inputs)
        logits.append(outputs["logits"])
        held = {name: outputs[name.replace("past_key_values", "present")] for name in held}
    return agreement(rows, {"logits": np.concatenate(logits, axis=1)}, {"logits": expected.numpy()})


def _called(answer: Answer, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    try:
        with torch.no_grad(), quiet():
            return [x.detach().cpu() for x in answer(inputs)]
    except Exception as error:  # whatever the user's own module raises
        raise VerificationError(
            f"the torch module cannot be called with inputs that its graph takes ({first_line(error)}); give inputs "
            "that it can take with --calibration"
        ) from error
