"""Floor 5: what was saved and what it cost."""

from spm_compress.report.inspection import inspection_json
from spm_compress.report.savings import Savings, Size, summarize, to_json

__all__ = ["Savings", "Size", "inspection_json", "summarize", "to_json"]
