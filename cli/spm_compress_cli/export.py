"""`spm-compress export`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from spm_compress_cli.factory import factory_option
from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.output import OutputFile
from spm_compress_cli.sizes import Sizes
from spm_compress_cli.verbosity import Verbosity, verbosity_options

_ACTIVATIONS = ["relu", "gelu", "tanh", "sigmoid", "silu", "leaky-relu", "elu", "none"]


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option("--onnx", "out", type=OutputFile(), help="File to write (a folder with --layers).")
@click.option(
    "--ort",
    "ort_path",
    type=OutputFile(),
    help="Write the model in ONNX Runtime's own format here, and beside it what a minimal build needs for it.",
)
@click.option("--graph", type=click.Path(path_type=Path), help="ONNX file of the dense model, to put the stages into.")
@click.option(
    "--source", "source_path", type=click.Path(path_type=Path), help="The model that was fitted, if it has moved."
)
@factory_option
@click.option(
    "--activation",
    type=click.Choice(_ACTIVATIONS),
    help="Between the linears of a bare nn.Sequential state dict.  [default: relu]",
)
@click.option(
    "--lowering",
    type=click.Choice(["auto", "stages", "blocks", "dense"]),
    default="auto",
    show_default=True,
    help="How the layers run; auto times each and takes the fastest.",
)
@click.option(
    "--layout",
    type=click.Choice(["feature-major", "batch-major"]),
    default="feature-major",
    show_default=True,
    help="Axis the features are on in stages and blocks; auto tries both.",
)
@click.option(
    "--batch", "batches", type=Sizes(), default="1", show_default=True, help="Batch sizes to be fast at, for auto."
)
@click.option(
    "--sequence", type=click.IntRange(min=1), default=128, show_default=True, help="Sequence length to be fast at."
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Threads to be fast with, 0: all.",
)
@click.option(
    "--provider",
    default="CPUExecutionProvider",
    show_default=True,
    help="ONNX Runtime's provider to be fast on.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Of the whole graph; inputs and outputs stay float32.",
)
@click.option("--quantize", type=click.Choice(["int8"]), help="Also quantize the weights that stay dense.")
@click.option(
    "--activations",
    type=click.Choice(["int8", "float32"]),
    default="int8",
    show_default=True,
    help="Of dense maps in 8 bits or less; int8 only where faster.",
)
@click.option(
    "--weights",
    type=click.Choice(["folded", "nbits", "auto"]),
    default="folded",
    show_default=True,
    help="Of dense maps in 4 bits, in memory: 8 or 32 bits, or 4 (opset 21); auto times both.",
)
@click.option("--dense", "dense_path", type=OutputFile(), help="Write the dense model's graph here too, to compare.")
@click.option("--layers", is_flag=True, is_eager=True, help="Write each fitted layer as a model of its own.")
@click.option("--with-past", is_flag=True, help="Of a decoder: take and give the keys and values of earlier tokens.")
@click.option("--allow-missing", is_flag=True, help="Export also where a fitted weight is not in the graph.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Inputs to verify and time with, where random ones will not do: as for fit.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbosity_options
def export(
    *,
    artifact: Path | None,
    out: Path | None,
    ort_path: Path | None,
    graph: Path | None,
    source_path: Path | None,
    factory: str | None,
    activation: str | None,
    lowering: str,
    layout: str,
    batches: tuple[int, ...],
    sequence: int,
    threads: int,
    provider: str,
    dtype: str,
    quantize: str | None,
    activations: str,
    weights: str,
    dense_path: Path | None,
    layers: bool,
    with_past: bool,
    allow_missing: bool,
    calibration: Path | None,
    as_json: bool,
    verbosity: Verbosity,
) -> None:
    """Write the compressed model as ONNX, and verify it against the torch operator.

    \b
    spm-compress export --onnx out.onnx
    spm-compress export --ort out.ort

    Without ARTIFACT, the one *.spm.safetensors in the working directory is taken. The file appears only
    after ONNX Runtime has computed with it what torch computes. An encoder-decoder becomes two files,
    out.encoder.onnx and out.decoder.onnx.
    """
    if out is None and ort_path is None:
        raise click.UsageError("there is nothing to write; give --onnx out.onnx, --ort out.ort or both")
    if layers and (out is None or ort_path is not None):
        raise click.UsageError("--layers writes ONNX files; give --onnx FOLDER, and leave --ort out")
    if quantize and dtype != "float32":
        raise click.UsageError("--quantize int8 and --dtype float16 exclude each other; choose one")
    if weights == "nbits" and activations == "float32":
        raise click.UsageError("--weights nbits rounds activations to 8 bits; leave --activations float32 out")
    from spm_compress.checkpoint import find_artifact, is_bare, keep_apart, read_artifact, source_files, source_of
    from spm_compress.export import (
        ExportSettings,
        Layout,
        Precision,
        Weights,
        check_ort_path,
        export_layers,
        export_onnx,
        first_batch,
        generates,
        has_past,
        ort_beside,
        write_ort,
    )
    from spm_compress.export.verification import check_provider
    from spm_compress_cli.export_table import show_exported
    from spm_compress_cli.progress import message

    check_provider(provider)
    if ort_path is not None:
        check_ort_path(ort_path)
    onnx_path = out or Path(click.get_current_context().with_resource(tempfile.TemporaryDirectory())) / "model.onnx"
    path = artifact or find_artifact(Path())
    fitted = read_artifact(path)
    needed = [path, *source_files(fitted, path), *filter(None, (graph, source_path))]
    for option, written_to in (("--onnx", out), ("--ort", ort_path), ("--dense", dense_path)):
        if written_to is not None and not (layers and written_to is out):
            keep_apart(option, written_to, needed)
            needed.append(written_to)
    settings = ExportSettings(
        lowering=ExportSettings.named(lowering, Layout(layout)),
        batches=batches,
        sequence=sequence,
        threads=threads,
        provider=provider,
        precision=Precision(quantize or dtype),
        allow_missing=allow_missing,
        with_past=with_past,
        rounds_activations=activations == "int8",
        weights=Weights(weights),
    )
    if_interrupted(written_since([out, ort_path, dense_path]))
    if layers:
        written = export_layers(fitted, onnx_path, settings=settings)
    else:
        source = None if graph else source_of(fitted, path, source_path, factory)
        if source and is_bare(source) and activation is None:
            message("no graph is given: assuming a chain of linears with relu between them (--activation)", verbosity)
        exported = export_onnx(
            fitted,
            onnx_path,
            source=source,
            graph=graph,
            activation=activation or "relu",
            settings=settings,
            dense_path=dense_path,
            known=first_batch(source, graph, calibration) if calibration is not None else None,
        )
        for name in exported.spliced.missing:
            message(f"{name}: was fitted, but the graph does not multiply by it; it is left out", verbosity)
        if source is not None and generates(source) and not with_past:
            way = " (--with-past gives one)" if has_past(source) else ""
            message(f"the file has no key-value cache: every step computes all tokens anew{way}", verbosity)
        written = list(exported.files)
    ort = [write_ort(each.path, ort_beside(ort_path, onnx_path, each.path)) for each in written] if ort_path else []
    show_exported(written, ort, as_json, is_kept=out is not None)
