"""A small real BERT, fitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint import Artifact, Source


@pytest.fixture(scope="session")
def source(bert: Path) -> Source:
    return open_source(bert)


@pytest.fixture(scope="session")
def artifact(source: Source) -> Artifact:
    fit = FitSettings(stages=12, block=8, steps=100)
    return fit_model(source, CompressSettings(fit, include=("encoder.*",)), beside=source.path.parent)
