"""What every registered codec keeps to, without being named here: a new one is tried as soon as it is registered."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian
from onnxscript import OpBuilder, build_function
from torch import Tensor

from spm_compress.codecs import Codec, StoredArray, codecs, read_codec, refusal, straight_through
from spm_compress.export.verification import session

CODECS = list(codecs().values())
SHAPES = [(1,), (7,), (3, 5), (2, 3, 4), (16, 33), (2, 3, 128)]
by_name = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def of_its_domain(codec: Codec, array: Tensor) -> Tensor:
    """Angles are what is left of a number when their period is taken off; half a turn is in the domain of all."""
    return array.abs() % codec.largest if codec.largest < 4 else array


def coded(codec: Codec, array: Tensor) -> Tensor:
    return codec.decode(codec.encode(array), tuple(array.shape))


def bits_of(codec: Codec, shape: tuple[int, ...]) -> float:
    return 8 * codec.bytes(shape) / math.prod(shape)


@settings(deadline=None, max_examples=80)
@given(st.sampled_from(CODECS), st.sampled_from(SHAPES), st.integers(0, 99), st.sampled_from([0.01, 1.0, 100.0]))
def test_what_is_decoded_is_near_what_was_encoded_at_any_scale(
    codec: Codec, shape: tuple[int, ...], seed: int, scale: float
) -> None:
    if not codec.fits(shape):
        return
    array = of_its_domain(codec, scale * gaussian(*shape, seed=seed))
    decoded = coded(codec, array)
    assert decoded.dtype == torch.float32
    if codec.largest < 4:  # of angles all are as near
        assert float((decoded - array).abs().max()) <= math.pi / 2 ** bits_of(codec, (128, 128)) + 1e-6
        return
    # a codec that lost its scale, its sign or its order is further off than half of its bits account for
    assert relative(decoded, array) <= min(0.85, 2 ** (2 - bits_of(codec, (128, 128)) / 2))


@by_name
def test_what_was_decoded_is_stored_as_it_is(codec: Codec) -> None:
    decoded = coded(codec, of_its_domain(codec, gaussian(16, 128)))
    assert torch.equal(coded(codec, decoded), decoded)


@by_name
def test_bytes_are_those_of_the_parts(codec: Codec) -> None:
    for shape in filter(codec.fits, SHAPES):
        array = StoredArray.of(codec, gaussian(*shape))
        assert tuple(array.parts) == codec.part_names()
        assert array.nbytes == sum(part.nbytes for part in array.parts.values()) == codec.bytes(shape)
        assert torch.equal(array.decoded(), coded(codec, gaussian(*shape)))


@by_name
def test_onnx_decodes_to_the_same_bits(codec: Codec) -> None:
    for shape in filter(codec.fits, SHAPES):
        parts = codec.encode(gaussian(*shape))

        def emitted(op: OpBuilder, *values: ir.Value, shape: tuple[int, ...] = shape) -> ir.Value:
            made = codec.emit(op, dict(zip(codec.part_names(), values, strict=True)), shape)
            return op.Identity(made)  # type: ignore[no-any-return]

        names = [f"part{i}" for i in range(len(parts))]
        function = build_function(
            emitted, [ir.Value(name=name) for name in names], domain="t", name="decode", opset_imports={"": 20}
        )
        inputs = [
            ir.Value(
                name=name, shape=ir.Shape(part.shape), type=ir.TensorType(ir.DataType.from_numpy(part.numpy().dtype))
            )
            for name, part in zip(names, parts.values(), strict=True)
        ]
        call = ir.Node("t", "decode", inputs)
        call.outputs[0].name = "decoded"
        call.outputs[0].type, call.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
        graph = ir.Graph(inputs, call.outputs, nodes=[call], opset_imports={"": 20, "t": 1}, name="g")
        model = ir.Model(graph, ir_version=9, functions=[function])
        runtime = session(ir.serde.serialize_model(model).SerializeToString())
        feed = {name: part.numpy() for name, part in zip(names, parts.values(), strict=True)}
        assert np.array_equal(runtime.run(None, feed)[0], codec.decode(parts, shape).numpy())


@by_name
def test_training_sees_what_is_stored_and_gradients_pass_the_rounding(codec: Codec) -> None:
    latent = gaussian(16, 128).abs().clamp(max=3).requires_grad_()  # half a turn is where some angles are
    rounded = straight_through(codec, latent)
    assert torch.equal(rounded, coded(codec, latent.detach()))
    gradient = gaussian(16, 128, seed=1)
    rounded.backward(gradient)  # type: ignore[no-untyped-call]
    assert latent.grad is not None and torch.equal(latent.grad, gradient)


@by_name
def test_a_codec_is_found_by_its_name(codec: Codec) -> None:
    assert read_codec(codec.name) == codec
    assert hash(read_codec(codec.name)) == hash(codec)
    with pytest.raises(ValueError, match="is none of"):
        read_codec(f"{codec.name}?")


@by_name
def test_parts_of_another_dtype_are_refused(codec: Codec) -> None:
    parts = {name: part.to(torch.complex64) for name, part in codec.encode(gaussian(8, 128)).items()}
    with pytest.raises(ValueError, match="complex64"):
        codec.decode(parts, (8, 128))


@by_name
def test_the_guard_refuses_what_harms_and_takes_what_does_not(codec: Codec) -> None:
    assert refusal(codec, 0.5, 0.5) is None
    assert refusal(codec, 0.0, 0.0009) is None  # its own rounding
    if math.isinf(codec.most_harm):  # few bits are what was asked for
        assert refusal(codec, 0.5, 0.52) is None
    else:
        assert codec.name in str(refusal(codec, 0.5, 0.52))
    assert codec.name in str(refusal(codec, 0.5, math.nan))
    assert codec.name in str(refusal(codec, 0.5, math.inf))


@by_name
def test_the_largest_number_is_stored_as_a_number(codec: Codec) -> None:
    array = torch.tensor([codec.largest, -codec.largest / 2]).repeat(64)
    assert bool(coded(codec, array).isfinite().all())
