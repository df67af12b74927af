"""``growpipe deploy``: the bundle that ships."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from growpipe.commands.output import count, print_json, tell
from growpipe.graph_ops.errors import UsageError
from growpipe.quality import Quality

if TYPE_CHECKING:
    from growpipe.bundle.options import BundleOptions
    from growpipe.graph_ops.edit.bundle import Card

__all__ = ["deploy"]

_MOST_LABELS = 16 << 20  # bytes


@click.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to write.")
@click.option(
    "--layout",
    type=click.Choice(["plain", "huggingface", "triton"]),
    default="plain",
    show_default=True,
    help="Where the files stand: as the Hugging Face hub or the Triton server look for them, or flat.",
)
@click.option("--name", default="model", show_default=True, help="Of the model.")
@click.option("--labels", type=click.Path(), help="The names of the classes: a text file, one per line.")
@click.option(
    "--test-vectors",
    "vectors",
    type=click.Path(),
    metavar="DATA.npz",
    help="Inputs by name; their outputs ship too, with verify.py. `targets` judge the variants.",
)
@click.option("--fp16", "half", is_flag=True, help="A variant in float16 as well, with its figures.")
@click.option("--int8", is_flag=True, help="A variant in int8 as well, with its figures.")
@click.option("--calibration", type=click.Path(), metavar="DATA.npz", help="For --int8: inputs by name.")
@click.option("--licence", "--license", "licence", metavar="ID", help="E.g. apache-2.0.")
@click.option("--task", metavar="WORD", help="What the model does, e.g. image-classification.")
@click.option("--json", "as_json", is_flag=True, help="Print the model card as JSON.")
def deploy(model: str, output: str, as_json: bool, **wanted: Any) -> None:
    """Write the deployable bundle of an ONNX file.

    The model in DIR is the deploy form of MODEL.onnx; README.md and card.json describe it. Before anything is
    published, both are run in onnxruntime on random inputs: a difference is an error. Variants in fewer bits
    are compared with the float32 model in accuracy and latency.
    """
    from growpipe.graph_ops.edit.bundle import bundle_files, write_bundle
    from growpipe.graph_ops.files.atomic import check_folder_target
    from growpipe.graph_ops.files.load_save import load_model

    files = [wanted[key] for key in ("labels", "vectors", "calibration") if wanted[key] is not None]
    check_folder_target(output, bundle_files, inputs=[model, *files])
    options = _options(**wanted)
    from growpipe.bundle.complete import completed
    from growpipe.checks.equivalence import Equivalence, compare_forms

    results: list[Equivalence] = []

    def verify(form: Path) -> dict[str, Any]:
        results.append(compare_forms(Path(model), form, "the deploy form"))
        return results[-1].to_json()

    card = write_bundle(load_model(model), output, verify, place=options.place, complete=completed(options))
    if as_json:
        print_json(card)
        return
    _print(card, output, str(results[-1]))


def _options(
    layout: Any,
    name: str,
    labels: str | None,
    vectors: str | None,
    half: bool,
    int8: bool,
    calibration: str | None,
    **words: str | None,
) -> BundleOptions:
    """What the command line asks for.

    Raises:
        UsageError: options that do not go together, or a file that cannot be read.
    """
    from growpipe.bundle.options import BundleOptions
    from growpipe.checks.measure.inputs import load_dataset
    from growpipe.graph_ops.files.reading import read_text

    if int8 != (calibration is not None):
        raise UsageError("--int8 and --calibration DATA.npz go together: the data shows the range of values")
    lines = [] if labels is None else read_text(labels, "the labels", most=_MOST_LABELS).splitlines()
    if labels is not None and not lines:
        raise UsageError(f"the file of labels {labels} is empty; give one name per line")
    return BundleOptions(
        name=name,
        layout=layout,
        labels=tuple(lines),
        vectors=None if vectors is None else load_dataset(vectors),
        half=half,
        calibration=None if calibration is None else load_dataset(calibration),
        licence=words["licence"],
        task=words["task"],
    )


def _print(card: Card, output: str, proof: str) -> None:
    size = sum(entry["bytes"] for entry in card["files"].values())
    tell(f"{output}: {', '.join(card['files'])}, {count(size)} bytes")
    tell(f"{count(card['parameters'])} parameters, {count(card['macs'])} MACs per sample")
    tell(proof)
    for variant in card["variants"]:
        latency = variant["latency"]
        told = [f"{100 * variant['bytes'] / variant['float32_bytes']:.0f} % of the size"]
        if variant["score"] is not None:
            quality = Quality(**variant["score"]["quality"])
            own, whole = (quality.shown(variant[key]["value"]) for key in ("score", "float32_score"))
            told.append(f"{quality.name} {own} (float32 {whole})")
        told.append(f"largest difference {variant['difference']:.1e}")
        told.append(
            f"latency {latency['ratio']:.2f} [{latency['low']:.2f}, {latency['high']:.2f}] of float32's"
        )
        tell(f"{variant['file']}: {', '.join(told)}, on {variant['judged_on']}")
