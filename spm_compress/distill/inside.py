"""What is compared inside a student and its teacher, besides their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from spm_compress.distill.hidden import hidden_distance
from spm_compress.distill.outputs import Batch
from spm_compress.distill.relations import projections, relation_distance
from spm_compress.distill.settings import DistillSettings
from spm_compress.distill.transformer_blocks import Blocks, chosen
from spm_compress.errors import UsageError

__all__ = ["Inside"]

_Distance = Callable[[Mapping[str, Tensor], Mapping[str, Tensor], Batch], Tensor]


class Inside:
    """Which layers are listened to (`tapped`), and what the difference of what they answer is worth.

    of_student, of_teacher: name of what is compared -> the layer that answers it.
    """

    def __init__(self, blocks: Blocks, settings: DistillSettings) -> None:
        states = _states(blocks, settings) if settings.hidden else {}
        vectors = _vectors(blocks, settings) if settings.relations else {}
        self._compared: list[tuple[float, _Distance, set[str]]] = [
            (settings.hidden, hidden_distance, set(states)),
            (settings.relations, relation_distance, set(vectors)),
        ]
        layers = states | vectors
        self.of_student = _layers(blocks.student, layers)
        self.of_teacher = _layers(blocks.teacher, layers)

    @property
    def names(self) -> list[str]:
        """What is compared."""
        return list(self.of_student)

    def distance(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor | float:
        """Return the weighted sum of the losses, 0 where nothing is compared; both as `tapped` yields them.

        A layer that did not run on a batch does not count in it.
        """
        total: Tensor | float = 0.0
        for weight, distance, names in self._compared:
            ran = {name: x for name, x in student.items() if name in names and name in teacher}
            if ran:
                total = total + weight * distance(ran, teacher, batch)
        return total


def _states(blocks: Blocks, settings: DistillSettings) -> dict[str, str]:
    if not blocks.names:
        raise UsageError("`hidden`: no layer of the model holds a fitted weight, so it has no blocks; leave it 0")
    return {f"hidden.{name}": name for name in chosen(blocks.names, settings.hidden_layers, "hidden_layers")}


def _vectors(blocks: Blocks, settings: DistillSettings) -> dict[str, str]:
    pairs = zip(blocks.names, blocks.of_student, strict=True)
    known = {name: found for name, block in pairs if (found := projections(block))}
    if not known:
        raise UsageError(
            "`relations`: no block with fitted weights has layers that are called query, key and value, q_proj, k_proj "
            "and v_proj, or alike; use `hidden` in its place"
        )
    names = chosen(list(known), settings.relation_layers, "relation_layers")
    return {f"{kind}.{name}": f"{name}.{layer}" for name in names for kind, layer in known[name].items()}


def _layers(model: nn.Module, names: Mapping[str, str]) -> dict[str, nn.Module]:
    return {compared: model.get_submodule(name) for compared, name in names.items()}
