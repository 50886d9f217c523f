"""Replacing products with fitted weights in a dense ONNX graph.

The rules:

1. A product with E (`checkpoint.products`) is recognised by the values of E (out, in), whatever way it is stored.
   If E is a fitted weight, its operator goes there; if E^T is, the transposed operator.
2. Only the product is replaced. The bias of a Gemm or Conv stays, as an Add; a layer's correction goes into the bias
   (`checkpoint.bias_corrections`). A 1x1 Conv mixes its channels, so they are
   put last for it and back afterwards. A lowering that makes the matrix leaves the product as it is, and so does any
   lowering at a product that is not plain.
3. A Gather of rows of a fitted dense map, a lookup table, gathers them as they are stored. Whatever else reads a weight
   or a copy of it gets the multiplied-out matrix: no weight is replaced at one use and dense at another.
4. Everything else keeps its names; an initializer that nothing uses any more is dropped, from the inputs too. Inputs
   and outputs keep the types and shapes that the graph declares.
5. One function a structure; one node a layer, named after it, with its numbers in the doc string. What stands around it
   is named after it, too, and nothing of ours takes a name that the graph has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, ShapeInferencePass

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.bias_corrections import correct_bias
from spm_compress.checkpoint.free_names import free_name
from spm_compress.errors import ExportError
from spm_compress.export.splicing.declared import declare, declared
from spm_compress.export.splicing.features_first import keep_features_first
from spm_compress.export.splicing.matches import Digests, Match, lookups, matches, none_found
from spm_compress.export.splicing.writer import Writer
from spm_compress.forms.local_function import DOMAIN
from spm_compress.forms.lowering import Dense, Lowering, Rows

__all__ = ["Spliced", "require_opset", "splice"]

# Range and negative axes of Flatten exist from this opset on, local functions from this IR version.
LEAST_OPSET, LEAST_IR_VERSION = 11, 8


@dataclass(frozen=True)
class Spliced:
    """What was done to a graph.

    nodes: layer -> names of its nodes; runs: node -> name of the lowering that it runs as; missing: the layers that
    were not found; elsewhere: layer -> operators that are no products and read its multiplied-out matrix.
    """

    nodes: dict[str, list[str]]
    missing: tuple[str, ...]
    runs: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, list[str]] = field(default_factory=dict)


def splice(
    model: ir.Model,
    layers: Sequence[FittedLayer],
    lowerings: Mapping[str, Lowering],
    digests: Digests | None = None,
) -> Spliced:
    """Replace in place every product with a fitted weight, under the rules above.

    lowerings: layer name -> how it is to run, `Dense` where none is named; digests: of a graph that this one is a copy
    of. Raises ExportError if the graph is too old, or holds none of the fitted weights.
    """
    opset = require_opset(model)
    said = declared(model)
    _move_functions(model)
    unknown = _infer_shapes(model)
    writer = Writer(model, opset)
    nodes: dict[str, list[str]] = {}
    runs: dict[str, str] = {}
    digests = digests or Digests()
    found = list(matches(model, layers, digests))
    for match in found:
        _correct(model, match)
        lowering = lowerings.get(match.layer.name, Dense()) if match.product.is_plain else Dense()
        nodes.setdefault(match.layer.name, []).append(writer.replace(match, lowering))
        runs[nodes[match.layer.name][-1]] = lowering.name
    looked_up = list(lookups(model, layers, digests))
    for lookup in looked_up:
        nodes.setdefault(lookup.layer.name, []).append(writer.replace_lookup(lookup))
        runs[nodes[lookup.layer.name][-1]] = Rows().name
    if layers and not nodes:
        raise none_found(layers)
    _remove_unused(model)
    elsewhere: dict[str, list[str]] = {}
    for match in found:
        kinds = writer.replace_elsewhere(match)
        elsewhere.setdefault(match.layer.name, []).extend(kinds)
    ours = [*(match.layer for match in found), *(lookup.layer for lookup in looked_up)]
    known = {(layer.sha256, layer.shape): layer for layer in ours}
    for name, kinds in writer.replace_copies(known, digests).items():
        elsewhere.setdefault(name, []).extend(kinds)
    keep_features_first(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in unknown:  # what the graph did not say, it does not say afterwards
                value.shape = value.type = None
    for value in [value for value in model.graph.inputs if value.is_initializer() and not value.uses()]:
        model.graph.inputs.remove(value)  # a weight that is gone, listed as an input
    _remove_unused(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    declare(model, said)
    return Spliced(
        nodes,
        tuple(layer.name for layer in layers if layer.name not in nodes),
        runs,
        {name: kinds for name, kinds in elsewhere.items() if kinds},
    )


def require_opset(model: ir.Model) -> int:
    """Return the opset of a graph. Raises ExportError for one that has not the operators of stages."""
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise ExportError(
            f"the graph has opset {opset}, SPM stages need {LEAST_OPSET} or later; "
            "convert it with onnx.version_converter.convert_version"
        )
    return opset


def _move_functions(model: ir.Model) -> None:
    """Put functions that are in our domain already, of an earlier export, into spm_compress.2, .3, ..."""
    earlier = [function for function in model.functions.values() if function.domain == DOMAIN]
    if not earlier:
        return
    taken = {function.domain for function in model.functions.values()} | set(model.opset_imports)
    domain = free_name(DOMAIN, taken | {DOMAIN})
    names = {function.identifier() for function in earlier}
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for node in scope.all_nodes():
            if node.op_identifier() in names:
                node.domain = domain
        if DOMAIN in scope.opset_imports:
            scope.opset_imports[domain] = scope.opset_imports[DOMAIN]
    for function in earlier:
        del model.functions[function.identifier()]
        function.domain = domain
        model.functions[function.identifier()] = function


def _remove_unused(model: ir.Model) -> None:
    RemoveUnusedNodesPass()(model)
    for graph in model.graph.subgraphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
                del graph.initializers[name]


def _infer_shapes(model: ir.Model) -> set[str | None]:
    """Find shapes and dtypes of inner values, where onnx can; return the names of those that had none.

    Many files have them of inputs and outputs only, while transposes and dtypes are decided inside.
    """
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    unknown = {value.name for value in values if value.shape is None and not value.is_graph_output()}
    if unknown:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return unknown


def _correct(model: ir.Model, match: Match) -> None:
    # A product with the transposed weight sees other inputs than those that the correction is the mean of.
    correction = match.layer.bias_correction
    if correction is not None and not match.transposed and match.product.is_plain:
        correct_bias(model, match.product, correction.double().numpy(), f"{match.layer.name}.spm.bias_correction")
