"""Floor 5: what was saved and what it cost."""

from spm_compress.report.savings import Savings, Size, summarize, to_json

__all__ = ["Savings", "Size", "summarize", "to_json"]
