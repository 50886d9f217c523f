"""The balanced form: the same map, in numbers of one size."""

from __future__ import annotations

from definition import relative
from draw import any_forms, random_operator, structures
from hypothesis import given, settings

from spm_compress.forms import Form, Operator
from spm_compress.forms.spm import SPM, Gauge, Mixer, build_spm
from spm_compress.forms.spm.balance import balanced
from spm_compress.forms.spm.canonical import to_general
from spm_compress.forms.sum import Sum


@settings(max_examples=40, deadline=None)
@given(structures())
def test_the_balanced_form_and_two_transpositions_are_the_same_map(structure: SPM) -> None:
    spm = random_operator(structure)
    dense = spm.to_dense()
    assert relative(balanced(structure, spm.arrays).to_dense(), dense) < 1e-10
    assert relative(spm.transposed().transposed().to_dense(), dense) < 1e-12


@settings(max_examples=30, deadline=None)
@given(any_forms())
def test_the_form_that_trains_is_the_same_map(form: Form) -> None:
    operator = random_operator(form)
    trainable = form.trainable(operator.arrays)
    assert {name: tuple(array.shape) for name, array in trainable.arrays.items()} == trainable.form.shapes
    for part in trainable.form.parts if isinstance(trainable.form, Sum) else (trainable.form,):
        assert not isinstance(part, SPM) or part.gauge is Gauge.FREE
    assert relative(trainable.to_dense(), operator.to_dense()) < 1e-10


def test_rotations_stay_rotations_when_transposed() -> None:
    spm = random_operator(build_spm(40, 24, stages=9, mixer=Mixer.ROTATION, block=8))
    turned = spm.transposed()
    assert isinstance(turned.form, SPM)
    assert turned.form.mixer is Mixer.ROTATION
    assert turned.parameter_count == spm.parameter_count


def test_balanced_stages_have_equal_energy_where_canonical_ones_do_not() -> None:
    canonical = random_operator(build_spm(64, 64, stages=10)).stored()
    assert isinstance(canonical.form, SPM)
    even = balanced(canonical.form, canonical.arrays)

    def spread(spm: Operator) -> float:
        assert isinstance(spm.form, SPM)
        general = to_general(spm.form, spm.arrays).arrays
        energy = general["0.diagonal"].square().sum(1) + general["0.off_diagonal"].square().sum(1)
        return float(energy.max() / energy.min())

    assert spread(even) < 1.5 < 100 < spread(canonical)
