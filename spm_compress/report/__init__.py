"""Floor 5: what was saved and what it cost."""

from spm_compress.report.attachments import Attachments, read_attachments
from spm_compress.report.page import write_page
from spm_compress.report.results import expansion_json, inspection_json, plan_json
from spm_compress.report.savings import Savings, Size, summarize, to_json

__all__ = [
    "Attachments",
    "Savings",
    "Size",
    "expansion_json",
    "inspection_json",
    "plan_json",
    "read_attachments",
    "summarize",
    "to_json",
    "write_page",
]
