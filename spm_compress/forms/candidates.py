"""The forms among which a fit may choose, all of one size."""

from __future__ import annotations

from spm_compress.errors import UsageError
from spm_compress.forms.form import Form
from spm_compress.forms.registry import forms
from spm_compress.forms.settings import FitSettings

__all__ = ["candidates", "check_forms"]


def candidates(settings: FitSettings, out_features: int, in_features: int) -> list[Form]:
    """Return the forms that settings allow for a weight of this shape, the plainest of every kind first.

    None has more stored numbers than the SPM that is asked for, except a dense map that is asked for alone; there may
    be no form as small.
    Raises UsageError for a kind that there is not.
    """
    check_forms(settings.forms)
    return [form for kind in settings.kinds for form in forms()[kind].candidates(settings, out_features, in_features)]


def check_forms(kinds: tuple[str, ...]) -> None:
    """Raise UsageError for a kind of form that there is not."""
    for kind in kinds:
        if kind not in forms():
            raise UsageError(f"`forms` {kind!r}: is none of {', '.join(forms())}")
