"""The tables of `analyser_speed.py`."""

from __future__ import annotations

from typing import Any

__all__ = ["summary"]


def summary(results: dict[str, Any]) -> str:
    """The section of ``RESULTS.md``, from what `analyser_speed.py` measured."""
    product, analysis, ends = results["product"], results["analysis"], results["ends"]
    reached = "" if ends["published_reached"] else "more than "
    lines = [
        "## Speed of the analyser" + ("" if results["device"] == "CPU" else " on CUDA"),
        "",
        f"MobileNetV1 0.25 at 32 x 32 with {results['activation']}, batch {results['batch']}, "
        f"{results['device']}, {product['channels']} channels in {product['groups']} groups. "
        + ("Times of the process, one thread." if results["device"] == "CPU" else "Event times.")
        + f" A training step takes {1000 * product['step_seconds']:.1f} ms, one S·v "
        f"{1000 * product['product_seconds']:.1f} ms.",
        "",
        "| what | measured | wanted |",
        "|---|---|---|",
        f"| one S·v over all groups / one training step | {product['ratio']:.2f} | at most 0.6 |",
        f"| signed analysis until the ranking is stable ({analysis['stages'][-1]['samples']} of at most "
        f"{analysis['samples']} samples) / epoch of 50,000 | "
        f"{analysis['share_of_an_epoch']:.3f} (keeping everything: "
        f"{analysis['share_keeping_everything']:.3f}) | at most 0.1 |",
        f"| the same on all {analysis['samples']} samples, stable or not | "
        f"{results['analysis_of_all']['share_of_an_epoch']:.3f} (keeping everything: "
        f"{results['analysis_of_all']['share_keeping_everything']:.3f}) | |",
        f"| analyse as a whole, with export, line search and the plan / epoch of 50,000 | "
        f"{results['whole']['predicted']:.3f} ranked by prediction, "
        f"{results['whole']['realised']:.3f} by trials of every group | |",
        f"| both ends of every channel within 1 %: published method / ours | {reached}"
        f"{ends['times_less']:.0f} ({ends['published_seconds']:.0f} s / {ends['our_seconds']:.2f} s) | "
        "at least 30 |",
    ]
    if "memory" in results:
        lines.append(
            f"| peak memory of capture and products that keep all / of a training step, batch "
            f"{results['memory']['batch']} | {results['memory']['ratio']:.2f} (keeping nothing: "
            f"{results['memory']['limited'] / results['memory']['step']:.2f}) | at most 2 |"
        )
        lines += [
            f"| peak memory of an analysis of 2,048 samples that keeps {keep} / of a training step "
            f"(its time) | {row['steps']:.1f} ({row['times']:.2f} times that of keeping everything) | "
            f"{'at most 2 ' if row['default'] else ''}|"
            for keep, row in results["memory"]["whole"].items()
        ]
    library = results["curvlinops"]
    if "skipped" not in library:
        lines.append(
            f"| both ends of one neuron, d = {library['dimension']}: curvlinops and eigsh / ours per channel "
            f"| "
            f"{library['seconds_per_neuron'] / library['our_seconds_per_channel']:.0f} "
            f"({1000 * library['seconds_per_neuron']:.1f} ms / "
            f"{1000 * library['our_seconds_per_channel']:.2f} ms) | |"
        )
    share, largest = results["share"], results["largest"]
    tf32 = ", TF32 allowed" if share["tf32"] and results["device"] != "CPU" else ""
    lines.append(
        f"| multiply-adds of one S·v per second / those of a convolution of 256 to 256 channels | "
        f"{share['share']:.2f} ({share['multiply_adds'] / 1e9:.2f} G; "
        f"limit {share['conv_limit'] / 1e9:.0f} G/s{tf32}) | |"
    )
    for network in largest["networks"][-1:]:
        lines.append(
            f"| the widest MobileNetV1 analysed on {largest['samples']} samples within "
            f"{largest['most_seconds']:g} s | width {network['width']:g}: {network['parameters']:,} "
            f"parameters, {network['channels']:,} channels, d up to {network['largest_dimension']:,}, "
            f"{network['seconds']:.1f} s ({largest['stopped']}) | |"
        )
    lines += [
        "",
        "By default an analysis keeps half of what a forward pass of one micro-batch makes, or 256 MiB where "
        "that is more, and computes the rest anew at each product. Its "
        "memory then does not grow with the samples. The price is the difference of times in the rows of "
        "the analysis; `memory_limit` buys it back where memory is plenty.",
        "",
        "Dense against Lanczos by group, on one batch: the time of dense over that of Lanczos, and what "
        "`auto` counts for it (it takes dense below 1).",
        "",
        "| d | " + " | ".join(str(row["dimension"]) for row in results["solvers"]["groups"]) + " |",
        "|---|" + "---|" * len(results["solvers"]["groups"]),
        *(
            f"| {what} | " + " | ".join(f"{row[what]:.2f}" for row in results["solvers"]["groups"]) + " |"
            for what in ("measured", "counted")
        ),
        "",
        "What stopping early costs the plan (30 % more channels, m4): its decrease of the loss by the exact "
        f"spectrum on all {analysis['samples']} samples, against that of the best plan.",
        "",
        "| stopped | samples | products per group, by set | lost by the choice | with its directions |",
        "|---|---|---|---|---|",
    ]
    for rule, row in results["choice"]["rules"].items():
        spent = ", ".join(f"{s['products_per_group']:.1f} on {s['samples']}" for s in row["stages"])
        lines.append(
            f"| {rule} | {row['samples']} | {spent} | {row['choice']:.2%} | "
            f"{row['choice_and_directions']:.2%} |"
        )
    starts = results["starts"]["rows"]
    lines += [
        "",
        "Products per group of Lanczos to half the standard errors on a first set of "
        f"{results['starts']['samples']} samples, and what the ends found before some training would save. A "
        "round of growth trains for hundreds of steps: a round starts anew from random weights.",
        "",
        "| training steps since | " + " | ".join(str(row["steps"]) for row in starts) + " |",
        "|---|" + "---|" * len(starts),
        "| from random weights | " + " | ".join(f"{row['random']:.1f}" for row in starts) + " |",
        "| from the old ends | " + " | ".join(f"{row['old_ends']:.1f}" for row in starts) + " |",
    ]
    if not ends["published_reached"]:
        worst = ", ".join(f"{run['worst_error']:.0%} after {run['steps']} steps" for run in ends["published"])
        lines += ["", f"The published method had not reached 1 %: its worst errors were {worst}."]
    return "\n".join(lines)
