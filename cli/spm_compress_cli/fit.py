"""`spm-compress fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spm_compress_cli.cache_folder import CACHE
from spm_compress_cli.completion import weight_names
from spm_compress_cli.config import from_option
from spm_compress_cli.evaluation import evaluation_options, gate_of
from spm_compress_cli.factory import factory_option
from spm_compress_cli.flags import with_flags
from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.opening import key_option, open_model
from spm_compress_cli.output import OutputFile
from spm_compress_cli.selection import selection_options
from spm_compress_cli.sizes import Range
from spm_compress_cli.verbosity import Verbosity, verbosity_options

if TYPE_CHECKING:
    from spm_compress.compress import CompressSettings, Executor

_FOUND_OUT = f"; what it found out for its plan is kept in {CACHE}, and the same command goes on from there"


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@factory_option
@key_option
@from_option
@click.option("-o", "--output", type=OutputFile(), help="Artifact to write.  [default: NAME.spm.safetensors here]")
@click.option("--stages", metavar="N|auto", help="Mixing stages per weight; auto with a target.  [default: 10]")
@click.option("--budget", type=float, metavar="SHARE", help="Choose stages so that all weights take this share.")
@click.option("--max-error", type=float, metavar="E", help="Choose stages so that each weight's error is at most this.")
@click.option(
    "--mixer",
    type=click.Choice(["general", "rotation", "auto"]),
    help="What a stage does to a pair; auto: the better one at the same size.  [default: general]",
)
@click.option("--low-rank", metavar="R|auto", help="Low-rank term; auto: a share of the size.  [default: 0]")
@click.option(
    "--forms",
    default="spm",
    show_default=True,
    metavar="KIND,...",
    help="What may take a weight's place, the best of one size: spm, low-rank, ...",
)
@click.option(
    "--effort",
    type=click.Choice(["fast", "balanced", "best"]),
    default="balanced",
    show_default=True,
    help="100, 600 or 1500 steps; best: --mixer auto --low-rank auto too.",
)
@click.option(
    "--schedule",
    type=click.Choice(["grouped", "butterfly", "random"]),
    default="grouped",
    show_default=True,
    help="How features are paired.",
)
@click.option("--block", type=int, default=32, show_default=True, help="Width of a group's blocks, a power of two.")
@click.option("--steps", type=click.IntRange(min=0), help="Most gradient steps per weight.  [default: by --effort]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of pairings and starts.")
@selection_options
@click.option(
    "--layer",
    "layers",
    multiple=True,
    shell_complete=weight_names,
    metavar="GLOB:KEY=VALUE,...",
    help="Other settings for some weights.",
)
@click.option(
    "--bits", default="8", show_default=True, metavar="B", help="Of a number of a form: 32, 16, 8 to 4, auto."
)
@click.option(
    "--dense-bits", metavar="B[/BLOCK]", help="Of dense maps that stay: 8 to 2, 1.6, 1; a scale a row or block."
)
@click.option("--table-bits", metavar="B[/BLOCK]", help="Of lookup tables, the same.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Fit the outputs on real inputs: .npz or .safetensors of model inputs, or .txt.",
)
@click.option("--sequential", is_flag=True, help="Fit each layer to what it gets from those already replaced.")
@click.option("--device", default="cpu", show_default=True, help="Where to fit: cpu, cuda, cuda:1, ...")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that fit; on Ray, tasks at once.  [default: 1]")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Who fits: this machine, or the Ray cluster of RAY_ADDRESS (a local one without it).",
)
@click.option("--gpu-share", type=Range(0), default=0.0, help="Of a GPU, for a task on Ray.  [default: 0]")
@click.option("--ship-weights", is_flag=True, help="Send weights to Ray's workers, which do not see the files.")
@click.option(
    "--refit",
    multiple=True,
    shell_complete=weight_names,
    metavar="GLOB",
    help="Fit only these anew; keep the rest of the output.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan with predicted bytes, errors, time and memory; no fit.")
@evaluation_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity_options
def fit(
    *,
    model: Path | None,
    factory: str | None,
    key: str | None,
    repeated: Path | None,
    output: Path | None,
    calibration: Path | None,
    device: str,
    jobs: int | None,
    executor: str,
    gpu_share: float,
    ship_weights: bool,
    refit: tuple[str, ...],
    dry_run: bool,
    evaluate: str | None,
    min_score: float | None,
    max_drop: float | None,
    as_json: bool,
    verbosity: Verbosity,
    **options: Any,
) -> None:
    """Replace every dense weight of MODEL by pairwise mixing stages.

    MODEL is a .safetensors file, a .safetensors.index.json, a .pt, .pth or .bin of torch.save, a .pt2 of torch.export,
    a .gguf, a Hugging Face folder or an .onnx model; what is in a file decides, not its name. With --factory, MODEL is
    the weights of what is built, or left out. Interrupted, the same command goes on where it was.
    """
    from spm_compress.checkpoint import (
        files_of,
        is_live,
        keep_apart,
        load_module,
        read_artifact,
        source_of,
        write_artifact,
    )
    from spm_compress.compress import Ledger, Refit, check_device, fit_model, load_model, plan_model
    from spm_compress.export.outlook import outlook
    from spm_compress.report import summarize
    from spm_compress_cli.plan_table import show_plan
    from spm_compress_cli.progress import follow, message, tell_left_out
    from spm_compress_cli.tables import show_totals

    settings = _settings(**options)
    gate = gate_of(evaluate, min_score, max_drop)
    check_device(device)
    if repeated is not None and model is None:
        source = source_of(read_artifact(repeated), repeated, factory=factory, key=key)
    else:
        source = open_model(model, factory, key, verbosity)
    found_out = written_since([CACHE])
    if gate and not is_live(source):
        raise click.UsageError(
            f"--eval: {source.path} is no model that can be called; a Hugging Face folder is, or give --factory"
        )
    cannot = outlook(source)
    if cannot is not None:
        root = click.get_current_context().find_root().command
        assert isinstance(root, click.Group)
        reason = with_flags(cannot, root)
        message(f"{source.path}: a fit of it can be expanded, but not exported: {reason}", verbosity)
    if_interrupted(lambda: found_out() and _FOUND_OUT)
    if dry_run:
        with follow(verbosity) as progress:
            selected, forecast = plan_model(
                source, settings, device=device, progress=progress, data=calibration, cache=CACHE
            )
        tell_left_out(source.path, selected.kept, verbosity)
        show_plan(selected, forecast, as_json)
        return
    path = output or Path(artifact_name(source.path if model or factory is None else Path(factory.partition(":")[0])))
    keep_apart("--output", path, files_of(source))
    written = written_since([path])
    if_interrupted(lambda: written() or (found_out() and _FOUND_OUT))
    with Ledger(path) as ledger, follow(verbosity) as progress:
        artifact = fit_model(
            source,
            settings,
            beside=path.parent,
            device=device,
            progress=progress,
            data=calibration,
            cache=CACHE,
            ledger=ledger,
            executor=_executor(executor, jobs, gpu_share, ship_weights),
            refit=Refit(read_artifact(path), refit) if refit else None,
        )
        write_artifact(artifact, path)
    tell_left_out(source.path, {kept.name: kept.reason for kept in artifact.kept}, verbosity)
    models = {"original": lambda: load_module(source), "fitted": lambda: load_model(artifact, source)}
    scores = gate.scores(models) if gate else {}
    show_totals(summarize(artifact, path), path, as_json, scores)
    if gate:
        gate.check(scores)


def _executor(name: str, jobs: int | None, gpu_share: float, ship_weights: bool) -> Executor:
    from spm_compress.compress import Here, OnRay, Processes

    if name == "ray":
        return OnRay(jobs, gpu_share, ship_weights)
    if gpu_share or ship_weights:
        raise click.UsageError("--gpu-share and --ship-weights are for --executor ray")
    return Here() if jobs in (None, 1) else Processes(jobs or 1)


def _settings(
    *,
    stages: str | None,
    budget: float | None,
    max_error: float | None,
    mixer: str | None,
    low_rank: str | None,
    forms: str,
    effort: str,
    schedule: str,
    block: int,
    steps: int | None,
    seed: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    layers: tuple[str, ...],
    min_features: int,
    bits: str,
    dense_bits: str | None,
    table_bits: str | None,
    sequential: bool,
) -> CompressSettings:
    from spm_compress.codecs import parse_bits
    from spm_compress.compress import CompressSettings, parse_forms, parse_override, parse_store
    from spm_compress.forms import EFFORTS, FitSettings
    from spm_compress.forms.spm import Mixer, Schedule

    has_target = budget is not None or max_error is not None
    if stages == "auto" and not has_target:
        raise click.UsageError("--stages auto needs a target: give --budget SHARE or --max-error E")
    if stages not in (None, "auto") and has_target:
        raise click.UsageError("--stages N and a target exclude each other; leave --stages out, or say auto")
    chosen: dict[str, Any] = {"schedule": Schedule(schedule), "block": block, "seed": seed, **EFFORTS[effort]}
    chosen["forms"] = parse_forms(forms)
    chosen["store"], chosen["fewest"] = parse_store(bits)
    if stages not in (None, "auto"):
        chosen["stages"] = _count("--stages", stages, least=1)
    if mixer is not None:
        chosen["mixer"] = None if mixer == "auto" else Mixer(mixer)
    if low_rank is not None:
        chosen["rank"] = None if low_rank == "auto" else _count("--low-rank", low_rank, least=0)
    if steps is not None:
        chosen["steps"] = steps
    return CompressSettings(
        fit=FitSettings(**chosen),
        include=include,
        exclude=exclude,
        min_features=min_features,
        dense=None if dense_bits is None else parse_bits(dense_bits, "dense_bits"),
        table=None if table_bits is None else parse_bits(table_bits, "table_bits"),
        overrides=tuple(parse_override(text) for text in layers),
        budget=budget,
        max_error=max_error,
        is_sequential=sequential,
    )


def _count(option: str, text: str, *, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise click.BadParameter(
            f"{text!r} is neither auto nor an integer of {least} or more", param_hint=f"'{option}'"
        )
    return int(text)


def artifact_name(model: Path) -> str:
    """Return the default name of a model's artifact: its own name with .spm.safetensors."""
    from spm_compress.checkpoint.files import own_name

    name = own_name(model)
    for suffix in (
        *(".safetensors.index.json", ".bin.index.json", ".safetensors", ".onnx", ".gguf"),
        *(".tar", ".pt2", ".pt", ".pth", ".bin", ".ckpt"),
    ):
        name = name.removesuffix(suffix)
    return f"{name}.spm.safetensors"
