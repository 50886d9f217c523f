"""`spm-compress verify`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.evaluation import evaluation_options, gate_of
from spm_compress_cli.sizes import Sizes
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--against", type=click.Path(path_type=Path), required=True, help="ONNX file to compare with: the dense model."
)
@click.option("--batch", "batches", type=Sizes(), help="Batch sizes.  [default: 1,8]")
@click.option("--sequence", "sequences", type=Sizes(), help="Sizes of the other dynamic axes.  [default: 16,128]")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=["CPUExecutionProvider"],
    show_default=True,
    help="ONNX Runtime's execution provider; repeatable.",
)
@click.option("--max-error", type=float, metavar="E", help="Fail if an output's relative error is above this.")
@evaluation_options
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbosity_options
def verify(
    *,
    model: Path,
    against: Path,
    batches: tuple[int, ...] | None,
    sequences: tuple[int, ...] | None,
    providers: tuple[str, ...],
    max_error: float | None,
    evaluate: str | None,
    min_score: float | None,
    max_drop: float | None,
    seed: int,
    as_json: bool,
    verbosity: Verbosity,
) -> None:
    """Compare the outputs of two ONNX models, on the same random inputs and on every provider.

    \b
    spm-compress verify out.onnx --against dense.onnx
    spm-compress verify out.onnx --against dense.onnx --eval score:accuracy --max-drop 0.02

    How far a compressed model is from the dense one says little about its accuracy; --eval measures that. The function
    is called with an object that runs the file, and is itself called as the torch model is.
    """
    from spm_compress.export.onnx_module import OnnxModule
    from spm_compress.export.side_by_side import VerifySettings, require_below, side_by_side
    from spm_compress_cli.progress import message
    from spm_compress_cli.verify_table import show_differences

    if max_error is not None and not max_error >= 0:
        raise click.UsageError(f"--max-error {max_error}: an error is 0 or more")
    gate = gate_of(evaluate, min_score, max_drop)
    default = VerifySettings()
    settings = VerifySettings(
        providers=tuple(dict.fromkeys(providers)),
        batches=batches or default.batches,
        sequences=sequences or default.sequences,
        seed=seed,
    )
    found = side_by_side(model, against, settings, lambda line: message(line, verbosity))
    models = {"original": lambda: OnnxModule(against), "exported": lambda: OnnxModule(model)}
    scores = gate.scores(models) if gate else {}
    show_differences(found, as_json, scores)
    if max_error is not None:
        require_below(found, max_error)
    if gate:
        gate.check(scores)
