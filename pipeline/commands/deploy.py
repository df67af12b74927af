"""``growpipe deploy``: the bundle that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from growpipe.commands.output import count, print_json, tell

__all__ = ["deploy"]


@click.command()
@click.argument("model", metavar="MODEL.onnx")
@click.option("-o", "--output", required=True, metavar="DIR", help="The folder to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the model card as JSON.")
def deploy(model: str, output: str, as_json: bool) -> None:
    """Write the deployable bundle of an ONNX file.

    DIR/model.onnx is the deploy form of MODEL.onnx, and DIR/card.json describes it. Before anything is
    published, both are run in onnxruntime on random inputs: a difference is an error.
    """
    from growpipe.checks.equivalence import Equivalence, compare_forms
    from growpipe.graph_ops.edit.bundle import bundle_files, write_bundle
    from growpipe.graph_ops.files.atomic import check_folder_target
    from growpipe.graph_ops.files.load_save import load_model

    check_folder_target(output, bundle_files, inputs=[model])
    results: list[Equivalence] = []

    def verify(form: Path) -> dict[str, Any]:
        results.append(compare_forms(Path(model), form, "the deploy form"))
        return results[-1].to_json()

    card = write_bundle(load_model(model), output, verify)
    if as_json:
        print_json(card)
        return
    size = sum(entry["bytes"] for entry in card["files"].values())
    tell(f"{output}: {', '.join(card['files'])}, {count(size)} bytes")
    tell(f"{count(card['parameters'])} parameters, {count(card['macs'])} MACs per sample")
    tell(str(results[-1]))
