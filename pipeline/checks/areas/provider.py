"""Provider: does it run where it was asked to?"""

from __future__ import annotations

from typing import Any

from growpipe.checks.context import Context
from growpipe.checks.measure.sessions import PROVIDERS
from growpipe.checks.registry import register
from growpipe.checks.report import SHOWN, Finding, Outcome, failed, passed

__all__: list[str] = []


@register(
    "provider/used",
    "the execution provider that was asked for is really used",
    "install the build of onnxruntime for the device, or check with --device cpu",
    runs=True,
)
def used(context: Context) -> Outcome:
    """onnxruntime lists providers that it cannot load, and falls back to the CPU with no more than a line on
    stderr. This asserts the provider of a real session. A device that is not there is exit code 3.
    """
    providers = list(context.process.providers(context.path, context.device))
    wanted = PROVIDERS[context.device]
    if providers[:1] != [wanted]:
        return Outcome("missing", f"{wanted} was asked for, used is {providers}")
    return passed(f"it runs on {wanted}", providers=providers)


@register(
    "provider/placement",
    "the nodes run on that provider",
    "replace the operators that the provider lacks, or raise provider.max_nodes_elsewhere",
    runs=True,
)
def placement(context: Context) -> Outcome:
    """Lists the provider of every node that remains after optimisation. A node that falls back to the CPU
    costs two copies over the bus.

    Policy: `provider.max_nodes_elsewhere`.
    """
    nodes = context.node_count
    elsewhere = nodes.elsewhere
    counted = ", ".join(f"{count} on {provider}" for provider, count in nodes.placement.items())
    findings = [Finding(f"it runs on {node.provider}", node.name, node.operator) for node in elsewhere]
    limit = context.policy.provider.max_nodes_elsewhere
    measured: dict[str, Any] = {"placement": dict(nodes.placement), "value": len(elsewhere)}
    if limit is not None and len(elsewhere) > limit:
        return failed(f"{len(elsewhere)} nodes run elsewhere, allowed are {limit}", *findings, **measured)
    return Outcome("passed", f"nodes: {counted or 'none'}", measured, tuple(findings[:SHOWN]))
