"""`spm-compress fit`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Artifact to write.  [default: NAME.spm.safetensors here]"
)
@click.option("--stages", type=click.IntRange(min=1), default=10, show_default=True, help="Mixing stages per weight.")
@click.option(
    "--mixer",
    type=click.Choice(["general", "rotation"]),
    default="general",
    show_default=True,
    help="What a stage does to a pair.",
)
@click.option(
    "--schedule",
    type=click.Choice(["grouped", "butterfly", "random"]),
    default="grouped",
    show_default=True,
    help="How features are paired.",
)
@click.option("--block", type=int, default=32, show_default=True, help="Width of a group's blocks, a power of two.")
@click.option(
    "--steps", type=click.IntRange(min=0), default=400, show_default=True, help="Most gradient steps per weight."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of pairings and starts.")
@click.option("--include", multiple=True, metavar="GLOB", help="Fit only weights of this name; repeatable.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave weights of this name dense; repeatable.")
@click.option(
    "--min-features", type=click.IntRange(min=1), default=32, show_default=True, help="Leave narrower weights dense."
)
@click.option(
    "--store",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the stored numbers.",
)
@click.option("--device", default="cpu", show_default=True, help="Where to fit: cpu, cuda, cuda:1, ...")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def fit(
    model: Path,
    output: Path | None,
    stages: int,
    mixer: str,
    schedule: str,
    block: int,
    steps: int,
    seed: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_features: int,
    store: str,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replace every dense weight of MODEL by pairwise mixing stages.

    MODEL is a .safetensors file, a .safetensors.index.json, a Hugging Face folder or an .onnx model.
    """
    import torch

    from spm_compress.checkpoint import open_source, write_artifact
    from spm_compress.compress import CompressSettings, check_device, fit_model
    from spm_compress.fitting import FitSettings
    from spm_compress.operator import Mixer, Schedule
    from spm_compress.report import summarize
    from spm_compress_cli.progress import follow
    from spm_compress_cli.tables import show_totals

    settings = CompressSettings(
        fit=FitSettings(
            stages=stages, mixer=Mixer(mixer), schedule=Schedule(schedule), block=block, steps=steps, seed=seed
        ),
        include=include,
        exclude=exclude,
        min_features=min_features,
        store={"float32": torch.float32, "float16": torch.float16}[store],
    )
    check_device(device)
    source = open_source(model)
    path = output or Path(artifact_name(model))
    with follow(quiet) as progress:
        artifact = fit_model(source, settings, beside=path.parent, device=device, progress=progress)
    write_artifact(artifact, path)
    show_totals(summarize(artifact, path), path, as_json)


def artifact_name(model: Path) -> str:
    """Return the default name of a model's artifact: its own name with .spm.safetensors."""
    name = model.resolve().name
    for suffix in (".safetensors.index.json", ".safetensors", ".onnx"):
        name = name.removesuffix(suffix)
    return f"{name}.spm.safetensors"
