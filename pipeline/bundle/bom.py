"""A bill of materials of a model in CycloneDX 1.6 (an ML-BOM): what it is, its hashes, its figures."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from growpipe.bundle.options import BundleOptions
from growpipe.bundle.variants import Variant

__all__ = ["BOM", "bill_of_materials"]

BOM = "bom.cdx.json"


def bill_of_materials(
    options: BundleOptions,
    card: Mapping[str, Any],
    hashes: Mapping[str, str],
    variants: Sequence[Variant],
    version: str,
) -> dict[str, Any]:
    """The document as JSON values. The same model gives the same document: it holds no time.

    Args:
        options: name, licence, task.
        card: describes the model.
        hashes: SHA-256 by file, of the model and its variants.
        variants: further files, with their figures.
        version: of growpipe.
    """
    serial = uuid.uuid5(
        uuid.NAMESPACE_OID, "".join(f"{name}{digest}" for name, digest in sorted(hashes.items()))
    )
    figures = {variant.file: variant for variant in variants}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "growpipe", "version": version}]},
            "component": _component(options, card, card["model"], hashes[card["model"]], None),
        },
        "components": [
            _component(options, card, name, digest, figures[name])
            for name, digest in hashes.items()
            if name in figures
        ],
    }


def _component(
    options: BundleOptions, card: Mapping[str, Any], file: str, digest: str, variant: Variant | None
) -> dict[str, Any]:
    kind = "" if variant is None else f"-{variant.kind}"
    parameters: dict[str, Any] = {
        "inputs": [{"format": _format(value)} for value in card["inputs"]],
        "outputs": [{"format": _format(value)} for value in card["outputs"]],
    }
    if options.task is not None:
        parameters["task"] = options.task
    model_card: dict[str, Any] = {"modelParameters": parameters}
    if variant is None and card["test"] is not None:
        test = card["test"]
        figure: dict[str, Any] = {
            "type": f"{test['metric']} on the test set",
            "value": f"{test['value']:.4g}",
        }
        if test["low"] is not None and test["high"] is not None:
            bounds = {"lowerBound": f"{test['low']:.4g}", "upperBound": f"{test['high']:.4g}"}
            figure["confidenceInterval"] = bounds
        model_card["quantitativeAnalysis"] = {"performanceMetrics": [figure]}
    if variant is not None:
        model_card["quantitativeAnalysis"] = {"performanceMetrics": _metrics(variant)}
    component: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": file,
        "name": f"{options.name}{kind}",
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "modelCard": model_card,
        "properties": [
            {"name": "growpipe:file", "value": file},
            {"name": "growpipe:parameters", "value": str(card["parameters"])},
            {"name": "growpipe:macs", "value": str(card["macs"])},
            {"name": "growpipe:growth-steps", "value": str(len(card["growth"]))},
        ],
    }
    if options.licence is not None:
        component["licenses"] = [{"license": {"name": options.licence}}]
    return component


def _format(value: Mapping[str, Any]) -> str:
    shape = value["shape"]
    return f"{value['name']}: {value['type']} {'' if shape is None else shape}".strip()


def _metrics(variant: Variant) -> list[dict[str, str]]:
    metrics = [
        {"type": f"largest relative difference on {variant.judged_on}", "value": f"{variant.difference:.3g}"},
        {"type": "latency over float32", "value": f"{variant.latency.ratio:.3g}"},
    ]
    if variant.top1_agreement is not None:
        metrics.append({"type": "top-1 agreement with float32", "value": f"{variant.top1_agreement:.4g}"})
    if variant.score is not None:
        metrics.append({"type": variant.score.quality.name, "value": f"{variant.score.value:.4g}"})
    return metrics
