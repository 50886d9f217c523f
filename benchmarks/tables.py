"""Tables of the documentation, made of benchmarks/results/*.json.

    python benchmarks/tables.py            # writes them into the pages; `make test` finds a page that differs

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bits_minilm(key: str) -> str:
    found = result("bits_minilm")[key]
    at = [f"{batch}x{tokens}" if batch > 1 else f"{tokens}" for batch, tokens in found["shapes"]]
    first = found["rows"][0]["milliseconds"]
    rows = [
        [
            row["name"],
            f"{row['megabytes']:.1f}",
            f"{row['spearman']:.3f}",
            f"{row['top1']:.3f}",
            f"{row['lee']:.3f}",
            " / ".join(f"{dense / own:.2f}x" for dense, own in zip(first, row["milliseconds"], strict=True)),
            f"{row['load_seconds']:.2f}",
        ]
        for row in found["rows"]
    ]
    speed = f"speed at {', '.join(at)} tokens"
    made = table(["file", "MB", "Spearman", "top-1", "Lee", speed, "load, s"], rows)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    commands = " and ".join(f"`{found[key]}`" for key in ("command", "timed") if key in found)
    return f"{made}\n{commands}, {found['date']}, {found['machine']}, one thread; {versions}.\n"


def bits_quality(kind: str) -> str:
    found = result("bits_quality")
    forms = ["spm", "svd", "spm over svd", "monarch", "pruned", "dense", "bound"]
    matrices = found["rows"][kind]

    def cell(at: Mapping[str, tuple[float, int]], form: str) -> str:
        if form not in at:
            return "-"
        median, count = at[form]
        return f"{median:.3f}" + (f" ({count})" if count < len(matrices) else "")

    rows = [[size, *(cell(at, form) for form in forms)] for size, at in found["median"][kind].items()]
    headings = ["SPM in angles", "SVD", "SPM over SVD", "Monarch", "pruned", "dense", "Gaussian bound"]
    made = table(["bits a weight", *headings], rows)
    models = ", ".join(dict.fromkeys(row["model"] for row in matrices))
    commands = ", ".join(dict.fromkeys(f"`{row['command']}`" for row in matrices))
    told = f"{commands}, {matrices[-1]['date']}, {matrices[-1]['machine']}; medians of {len(matrices)} ({models})."
    return f"{made}\n{told} In brackets: of how many, where stages are too large or take too long on others.\n"


def below_one_bit() -> str:
    found = result("below_one_bit")
    methods = {
        "svd": "SVD",
        "svd, descent": "SVD, descent",
        "float32": "stages in float32",
        "alone": "angles alone",
        "in turn": "in turn",
        "layer's codes": "codes of a layer",
        "stage's codes": "codes of a stage",
        "longer": "fitted longer",
        "rotations": "rotations",
        "descent": "descent",
    }

    def cell(reached: Mapping[str, float] | None) -> str:
        if reached is None:
            return "-"
        bits = f" ({reached['bits']} b)" if "bits" in reached else ""
        return f"{reached['error']:.3f}{bits}"

    measured = [(name, size, at) for name, sizes in found.items() for size, at in sizes.items()]
    rows = [[name, size, *(cell(at["reached"].get(method)) for method in methods)] for name, size, at in measured]
    commands = ", ".join(dict.fromkeys(f"`{at['command']}`" for _, _, at in measured))
    made = table(["matrix", "bits a weight", *methods.values()], rows)
    return f"{made}\n{commands}; {measured[-1][2]['date']}, {measured[-1][2]['machine']}.\n"


def load() -> str:
    found = result("load")
    rows = [
        [
            row["name"],
            f"{row['megabytes']:.1f}",
            f"{row['seconds']:.2f}",
            f"{row['ratio']:.2f}x",
            f"{row['peak_megabytes']}",
        ]
        for row in found["rows"]
    ]
    made = table(["file", "MB", "load, s", "beside float32", "peak, MB"], rows)
    told = f"{found['date']}, {found['machine']}, onnxruntime {found['onnxruntime']}; {found['stages']} stages"
    return f"{made}\n`{found['command']}`, {told}.\n"


def eight_bits() -> str:
    found = result("eight_bits")
    first = next(iter(found.values()))
    kinds = [f"{row['stages']} stages, {row['mixer']}" for row in first["rows"]]
    rows = [[model, str(at["weights"]), *(f"{row['most']:.5f}" for row in at["rows"])] for model, at in found.items()]
    commands = ", ".join(dict.fromkeys(f"`{at['command']}`" for at in found.values()))
    made = table(["model", "layers", *kinds], rows)
    return f"{made}\n{commands}, {first['date']}, {first['machine']}.\n"


def int8_blocks() -> str:
    found = result("int8_blocks")
    ways = ("a scale a column", "one scale")
    rows = [
        [
            f"{row['width']}",
            f"{row['stages']}",
            f"{row['rows']}",
            f"{row['microseconds']:,.0f} us",
            *(f"{row[way]['speed']:.2f}x ({row[way]['error']:.3f})" for way in ways),
        ]
        for row in found["rows"]
    ]
    made = table(["n", "stages", "rows", "float32 blocks", *(f"int8, {way}" for way in ways)], rows)
    return f"{made}\n`{found['command']}`, {found['date']}, {found['machine']}, onnxruntime {found['onnxruntime']}.\n"


def recovery_rates() -> str:
    found = result("recovery_rates")
    rows = [
        [
            f"{row['form']}, {row['bits']} b, table {row['table']} b",
            f"`{row['setting']}`",
            f"{row['steps']}",
            f"{row['looks'][-1][2]:.3f}",
            *(f"{row[name]:.3f}" for name in ("spearman", "top1", "lee", "spam")),
            f"{row['cpu_seconds']}",
        ]
        for row in found
    ]
    made = table(["file", "setting", "steps", "held out", "Spearman", "top-1", "Lee", "spam", "s of CPU"], rows)
    commands = ", ".join(dict.fromkeys(f"`{row['command']}`" for row in found))
    told = f"{found[-1]['date']}, {found[-1]['machine']}, beside other work; torch {found[-1]['torch']}"
    return f"{made}\n{commands}; {told}.\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "bits-minilm": lambda: bits_minilm("without data"),
    "bits-minilm-calibrated": lambda: bits_minilm("calibrated on 400 sentences"),
    "bits-quality": lambda: bits_quality("plain"),
    "bits-quality-weighted": lambda: bits_quality("weighted"),
    "below-one-bit": below_one_bit,
    "eight-bits": eight_bits,
    "load": load,
    "int8-blocks": int8_blocks,
    "recovery-rates": recovery_rates,
}


def with_tables(page: str) -> str:
    """Return a page with its tables as the results have them."""
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def pages() -> list[Path]:
    return [path for path in sorted((ROOT / "docs").rglob("*.md")) if _BLOCK.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for path in pages():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
