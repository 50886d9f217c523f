"""`spm-compress export`."""

from __future__ import annotations

from pathlib import Path

import click

_ACTIVATIONS = ["relu", "gelu", "tanh", "sigmoid", "silu", "leaky-relu", "elu", "none"]


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option(
    "--onnx", "out", type=click.Path(path_type=Path), required=True, help="File to write (a folder with --layers)."
)
@click.option("--graph", type=click.Path(path_type=Path), help="ONNX file of the dense model, to put the stages into.")
@click.option(
    "--source", "source_path", type=click.Path(path_type=Path), help="The model that was fitted, if it has moved."
)
@click.option(
    "--activation",
    type=click.Choice(_ACTIVATIONS),
    help="Between the linears of a bare nn.Sequential state dict.  [default: relu]",
)
@click.option(
    "--layout",
    type=click.Choice(["feature-major", "batch-major"]),
    default="feature-major",
    show_default=True,
    help="Axis the features are on while the stages run.",
)
@click.option("--layers", is_flag=True, help="Write each fitted layer as a model of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No messages on stderr.")
def export(
    artifact: Path | None,
    out: Path,
    graph: Path | None,
    source_path: Path | None,
    activation: str | None,
    layout: str,
    layers: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the compressed model as ONNX with SPM stages, and verify it against the torch operator.

    Without ARTIFACT, the one *.spm.safetensors in the working directory is taken. The file appears only
    after ONNX Runtime has computed with it what torch computes.
    """
    from spm_compress.checkpoint import find_artifact, read_artifact
    from spm_compress.export import Layout, Stages, export_layers, export_onnx, source_of
    from spm_compress_cli.progress import message
    from spm_compress_cli.tables import show_exported

    path = artifact or find_artifact(Path())
    fitted = read_artifact(path)
    lowering = Stages(Layout(layout))
    if layers:
        written = export_layers(fitted, out, lowering=lowering)
    else:
        source = None if graph else source_of(fitted, path, source_path)
        if source and source.config is None and activation is None:
            message("no graph is given: assuming a chain of linears with relu between them (--activation)", quiet)
        exported = export_onnx(
            fitted, out, source=source, graph=graph, activation=activation or "relu", lowering=lowering
        )
        for name in exported.spliced.missing:
            message(f"{name}: was fitted, but the graph does not use it", quiet)
        written = [exported]
    show_exported(written, as_json)
