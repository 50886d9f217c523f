"""`spm-compress distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spm_compress_cli.cache_folder import CACHE
from spm_compress_cli.evaluation import evaluation_options, gate_of
from spm_compress_cli.factory import factory_option
from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.output import OutputFile
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DATA",
    help="Unlabelled inputs: a .txt, a folder of datasets, or .npz or .safetensors of model inputs.",
)
@click.option(
    "-o",
    "--output",
    type=OutputFile(),
    help="Artifact to write.  [default: NAME.recovered.spm.safetensors]",
)
@click.option(
    "--source", "source_path", type=click.Path(path_type=Path), help="The model that was fitted, if it has moved."
)
@factory_option
@click.option("--steps", type=int, default=1000, show_default=True, help="Optimizer steps.")
@click.option("--batch", type=int, default=32, show_default=True, help="Samples a step.")
@click.option("--accumulate", type=int, default=1, show_default=True, help="Parts in which a batch is run.")
@click.option(
    "--rate",
    multiple=True,
    metavar="[GROUP=]RATE,...",
    help="Highest learning rate of all, or of spm, dense, table, norm or scale.  [default: by group]",
)
@click.option(
    "--end", type=click.Choice(["cosine", "linear"]), default="cosine", show_default=True, help="How rates fall."
)
@click.option(
    "--average", type=float, default=0.0, show_default=True, help="Decay of a mean over steps to keep; 0: none."
)
@click.option("--weight-decay", type=float, default=0.0, show_default=True, help="Of the optimizer.")
@click.option("--optimizer", default="AdamW", show_default=True, help="A class of torch.optim.")
@click.option(
    "--block-share",
    type=float,
    default=0.1,
    show_default=True,
    help="Share of steps block by block, before end to end.",
)
@click.option(
    "--loss", type=click.Choice(["features", "logits"]), help="Of the outputs.  [default: by what the model answers]"
)
@click.option(
    "--hidden", type=float, default=0.0, show_default=True, help="Weight of the error of what each block answers."
)
@click.option(
    "--hidden-layers",
    default="all",
    show_default=True,
    metavar="last|all|N,...",
    help="Which blocks' answers, of those with fitted weights.",
)
@click.option(
    "--relations",
    type=float,
    default=0.0,
    show_default=True,
    help="Weight of how queries, keys and values are to each other (MiniLMv2).",
)
@click.option("--relation-layers", default="last", show_default=True, metavar="last|all|N,...", help="In which blocks.")
@click.option("--temperature", type=float, default=2.0, show_default=True, help="Of logits.")
@click.option(
    "--train",
    "trained",
    type=click.Choice(["spm", "all"]),
    default="spm",
    show_default=True,
    help="SPM numbers, biases and norms, or everything.",
)
@click.option("--held-out", type=float, default=0.02, show_default=True, help="Share of the data to judge by.")
@click.option("--check-every", type=int, default=100, show_default=True, help="Steps between two looks at it.")
@click.option("--patience", type=int, default=10, show_default=True, help="Looks without a gain before it ends early.")
@click.option("--keep-every", type=int, default=200, show_default=True, help="Steps between states to resume from.")
@click.option("--longest", type=int, default=128, show_default=True, help="Tokens of a text.")
@click.option(
    "--remember-disk",
    type=float,
    default=4.0,
    show_default=True,
    metavar="GIB",
    help=f"Of the original's answers, kept in {CACHE} for the next training; 0: none.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the order of the data.")
@click.option("--log", type=OutputFile(), help="JSON lines, one a look at the held-out data.")
@click.option("--device", default="cpu", show_default=True, help="Where to train: cpu, cuda, cuda:1, ...")
@evaluation_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity_options
def distill(
    *,
    artifact: Path | None,
    calibration: Path,
    output: Path | None,
    source_path: Path | None,
    factory: str | None,
    log: Path | None,
    device: str,
    evaluate: str | None,
    min_score: float | None,
    max_drop: float | None,
    as_json: bool,
    verbosity: Verbosity,
    **options: Any,
) -> None:
    """Train a compressed model to answer as the original does: no labels, no code for the task.

    The original is a Hugging Face folder, what --factory builds, a program of torch.export (.pt2), or an ONNX model
    (pip install 'spm-compress[train-onnx]').

    Without ARTIFACT, the one *.spm.safetensors in the working directory is taken. Interrupted, the same command goes on
    where it was.
    """
    from spm_compress.checkpoint import (
        SUFFIX,
        files_of,
        find_artifact,
        keep_apart,
        read_artifact,
        source_of,
        write_artifact,
    )
    from spm_compress.compress import check_device, load_model
    from spm_compress.distill import DistillSettings, End, Loss, Rates, Trained, TrainingReport, recover
    from spm_compress.distill.state import kept_step
    from spm_compress.report import summarize
    from spm_compress_cli.progress import message
    from spm_compress_cli.tables import show_totals
    from spm_compress_cli.training_progress import follow_training

    gate = gate_of(evaluate, min_score, max_drop)
    check_device(device)
    loss = options.pop("loss")
    settings = DistillSettings(
        loss=None if loss is None else Loss(loss),
        trained=Trained(options.pop("trained")),
        rates=Rates.parse(*options.pop("rate")),
        end=End(options.pop("end")),
        **options,
    )
    path = artifact or find_artifact(Path())
    fitted = read_artifact(path)
    source = source_of(fitted, path, source_path, factory)
    out = output or Path(f"{path.name.removesuffix(SUFFIX)}.recovered{SUFFIX}")
    keep_apart("--output", out, [*files_of(source), calibration])
    if log is not None:
        keep_apart("--log", log, [*files_of(source), calibration, path, out])
    state = out.with_name(f"{out.name}.state")
    written, reached = written_since([out]), 0

    def told() -> str | None:
        step = kept_step(state) if reached else None
        if written() or not reached:
            return written()
        if step is None:
            return f" at step {reached}, before its first state was kept; the same command begins anew (--keep-every)"
        return f" at step {reached}; its state at step {step} is kept in {state}, and the same command goes on from it"

    if_interrupted(told)
    with follow_training(verbosity, log) as show:

        def watch(report: TrainingReport) -> None:
            nonlocal reached
            reached = report.step
            show(report)

        found = recover(
            fitted,
            source,
            calibration,
            settings,
            beside=out.parent,
            device=device,
            watch=watch,
            state=state,
            cache=CACHE,
        )
    if found.frozen:
        others = f" and {len(found.frozen) - 3} more" if len(found.frozen) > 3 else ""
        text = f"{', '.join(found.frozen[:3])}{others}: not trained, as no linear layer has it as its own weight"
        message(f"{text}; kept as fitted", verbosity)
    write_artifact(found.artifact, out)
    state.unlink(missing_ok=True)
    models = {
        "original": lambda: found.teacher,
        "fitted": lambda: load_model(fitted, source),
        "recovered": lambda: found.student,
    }
    scores = gate.scores(models) if gate else {}
    show_totals(summarize(found.artifact, out), out, as_json, scores)
    if gate:
        gate.check(scores)
