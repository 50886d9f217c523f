"""Every form there is, by its kind; a new form is a folder or a file beside this one and a line in `forms`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spm_compress.forms.dense import Dense
from spm_compress.forms.form import Form
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.monarch.form import Monarch
from spm_compress.forms.spm.form import SPM
from spm_compress.forms.sum import Sum

__all__ = ["forms", "read_form"]


def forms() -> Mapping[str, type[Form]]:
    """Return every form there is, by its kind."""
    found: tuple[type[Form], ...] = (
        SPM,
        LowRank,
        Sum,
        Dense,
        Monarch,
    )
    return {form.kind: form for form in found}


def read_form(entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> Form:
    """Return the form of an entry of a manifest. Raises as `Form.from_json`, also for a kind that is not known."""
    kind = entry["kind"]
    if kind not in forms():
        raise ValueError(f"form {kind!r} is none of {', '.join(forms())}")
    form = forms()[kind].from_json(entry, tables)
    if form.in_features < 1 or form.out_features < 1:
        raise ValueError(f"a form {form.out_features}x{form.in_features}")
    return form
