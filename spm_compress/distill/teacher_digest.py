"""What a teacher's answers depend on, in one number: whoever changes any of it must not be given old answers."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spm_compress.distill.tensor_digest import add_tensors
from spm_compress.version import __version__

__all__ = ["teacher_digest"]


def teacher_digest(teacher: nn.Module, device: torch.device, *kept: object) -> str:
    """Return 32 hexadecimal digits of a teacher, of what computes it, and of what of its answers is kept.

    A teacher is its tensors, the plain attributes and the code of its modules: the files that their classes are written
    in (what these import is not looked at), or the code that a graph was made into. What computes it, to the last bit:
    torch, the processor or GPU, the number of threads. kept: told apart by their `repr`.
    """
    digest = hashlib.blake2b(digest_size=16)
    computing = (__version__, torch.__version__, _processor(device), torch.get_num_threads())
    for each in (*computing, *kept, *_code(teacher)):
        part = each if isinstance(each, bytes) else repr(each).encode()
        digest.update(len(part).to_bytes(8, "little") + part)
    add_tensors(digest, {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())})
    return digest.hexdigest()


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def _code(teacher: nn.Module) -> Iterator[object]:
    config: Any = getattr(teacher, "config", None)
    if hasattr(config, "to_dict"):
        yield sorted((name, repr(value)) for name, value in config.to_dict().items())
    files: set[str] = set()
    for name, module in teacher.named_modules():
        plain = {each: value for each, value in vars(module).items() if isinstance(value, (bool, int, float, str))}
        yield name, type(module).__qualname__, sorted(plain.items()), getattr(module, "code", None)
        with contextlib.suppress(TypeError, OSError):  # built in, or made while the program runs
            files.add(inspect.getfile(type(module)))
    for file in sorted(files):
        with contextlib.suppress(OSError):
            yield Path(file).read_bytes()
