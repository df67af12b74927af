"""The charts of a page: plain SVG, with words for a pointer, the keyboard and a screen reader."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from growpipe.pages.content import Curve, GroupGrowth, Kind, Network, RunStory
from growpipe.pages.scales import MINUS, Scale, grouped, short
from growpipe.pages.svg import group, tag, text
from growpipe.quality import Quality

__all__ = ["bar", "curves_chart", "networks_chart", "spectrum_chart", "told"]

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 22, 18, 62
_MOST_BANDS = 240  # places along the epochs that answer a pointer
_MOST_VERTICES = 400  # of a curve: more cannot be seen
_BINS = 21
_BELOW = 5.0  # how far below the best validation loss a training loss is shown
_MOST_LABELLED = 12


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart: both scales, and where they begin."""

    x: Scale
    y: Scale

    def axes(self, x_label: str, y_label: str) -> Markup:
        """Grid, ticks and the names of both axes."""
        parts = []
        for value in self.y.ticks():
            place = self.y(value)
            parts += [
                tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=place, y2=place),
                text(_LEFT - 8, place + 4, short(value), "tick", "end"),
            ]
        for value in self.x.ticks():
            place = self.x(value)
            parts += [
                tag("line", class_="grid", x1=place, x2=place, y1=_TOP, y2=_HEIGHT - _BOTTOM),
                text(place, _HEIGHT - _BOTTOM + 20, short(value), "tick", "middle"),
            ]
        middle = (_TOP + _HEIGHT - _BOTTOM) / 2
        turned = tag("text", y_label, class_="axis", text_anchor="middle",
                     transform=f"translate(16 {middle:.0f}) rotate(-90)")  # fmt: skip
        named = text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, "axis", "middle")
        return group(*parts, named, turned, aria_hidden="true")


def _chart(
    label: str, *children: str, width: int = _WIDTH, height: int = _HEIGHT, class_: str = "chart"
) -> Markup:
    return tag(
        "svg", *children, class_=class_, viewBox=f"0 0 {width} {height}", role="group", aria_label=label
    )


def networks_chart(story: RunStory) -> Markup:
    """Quality over size: a mark per network, grown ones joined in their order, the budget as a line."""
    networks = story.networks
    sizes = [size_of(network, story.size) for network in networks]
    wide = max(sizes) > 20 * max(min(sizes), 1e-12)
    ends = [*sizes, *([] if story.limit is None else [story.limit])]
    frame = _Frame(
        Scale.over(ends, _LEFT, _WIDTH - _RIGHT, logarithmic=wide),
        Scale.over(_ends(networks, story.quality), _HEIGHT - _BOTTOM, _TOP),
    )
    parts: list[str] = [frame.axes(story.size, story.quality.axis("test"))]
    if story.limit is not None:
        bound = frame.x(story.limit)
        parts += [
            tag("line", class_="limit", x1=bound, x2=bound, y1=_TOP, y2=_HEIGHT - _BOTTOM),
            text(bound - 6, _TOP + 12, "budget", "tick", "end"),
        ]
    places = [
        (frame.x(s), frame.y(story.quality.scaled(n.score.value)))
        for s, n in zip(sizes, networks, strict=True)
    ]
    for kinds in (("grown", "seed"), ("family",)):
        joined = [place for place, n in zip(places, networks, strict=True) if n.kind in kinds]
        if len(joined) > 1:
            line = tag("polyline", points=_points(joined), class_=f"line kind-{kinds[0]}", aria_hidden="true")
            parts.append(line)
    for network, place in zip(networks, places, strict=True):
        parts.append(_mark(network, place, frame.y, story.quality, len(networks) <= _MOST_LABELLED))
    return _chart("Quality of every network over its size", *parts)


def size_of(network: Network, size: str) -> float:
    """What the chart measures a network by."""
    if size == "MACs":
        return float(network.macs)
    if size != "parameters" and network.cost is not None:
        return network.cost
    return float(network.parameters)


def _ends(networks: Sequence[Network], quality: Quality) -> Iterator[float]:
    for network in networks:
        for value in (network.score.value, network.score.low, network.score.high):
            if value is not None:
                yield quality.scaled(value)


def _mark(network: Network, place: tuple[float, float], y: Scale, quality: Quality, labelled: bool) -> Markup:
    """The mark of a network, its interval and its name."""
    left, top = place
    parts: list[str] = []
    if network.score.low is not None and network.score.high is not None:
        ends = y(quality.scaled(network.score.low)), y(quality.scaled(network.score.high))
        parts.append(tag("line", class_="interval", x1=left, x2=left, y1=ends[0], y2=ends[1]))
    parts.append(_shape(network.kind, left, top))
    if network.deployed:
        parts.append(tag("circle", cx=left, cy=top, r=12, class_="deployed"))
    if labelled:
        # Grown networks have their names below the line that joins them, all others above their mark.
        down = 17 if network.kind in ("seed", "grown") else -11
        aside, anchor = (12.0, "start") if left < _WIDTH - 120 else (-12.0, "end")
        parts.append(text(left + aside, top + down, network.name, "name", anchor))
    words = told(network, quality)
    return group(
        *parts,
        class_=f"mark kind-{network.kind}",
        tabindex="0",
        role="img",
        aria_label=words,
        data_tip=words,
    )


def _shape(kind: Kind, x: float, y: float) -> Markup:
    """Each kind has a shape of its own, so that colour is not all that tells them apart."""
    if kind == "rival":
        return tag("path", d=f"M{x:.2f} {y - 8:.2f}l8 8l-8 8l-8 -8z", class_="shape")
    if kind == "control":
        return tag("rect", x=x - 6, y=y - 6, width=12, height=12, class_="shape")
    if kind == "family":
        return tag("path", d=f"M{x:.2f} {y - 8:.2f}l8 14h-16z", class_="shape")
    return tag("circle", cx=x, cy=y, r=6.5, class_="shape")


def told(network: Network, quality: Quality) -> str:
    """A network in words: what a pointer shows and a screen reader says."""
    widths = " ".join(str(width) for width in network.widths.values())
    parts = [network.name + (" (deployed)" if network.deployed else "")]
    found = quality.told(network.score.value)
    if network.score.low is not None and network.score.high is not None:
        ends = (quality.shown(end).removesuffix(" %") for end in (network.score.low, network.score.high))
        found += f" [{', '.join(ends)}]"
    parts.append(found)
    parts += [
        f"widths {widths}",
        f"{grouped(network.parameters)} parameters",
        f"{grouped(network.macs)} MACs",
    ]
    if network.milliseconds is not None:
        parts.append(f"latency {network.milliseconds:.3g} ms")
    if network.cost is not None:
        parts.append(f"{network.cost:.3g} {network.unit}")
    return " · ".join(parts)


def curves_chart(curves: Sequence[Curve]) -> Markup:
    """Validation loss over epochs; a vertical line where the network grew."""
    epochs = max((curve.start + len(curve.validation_loss) for curve in curves), default=0)
    frame = _Frame(
        Scale(0.5, max(epochs, 1) + 0.5, _LEFT, _WIDTH - _RIGHT),
        Scale.over(_losses(curves), _HEIGHT - _BOTTOM, _TOP, logarithmic=True, margin=0.04),
    )
    parts: list[str] = [frame.axes("epoch", "loss")]
    for curve in curves:
        for split in curve.splits:
            place = frame.x(split + 0.5)
            parts.append(tag("line", class_="split", x1=place, x2=place, y1=_TOP, y2=_HEIGHT - _BOTTOM))
    for curve in curves:
        parts += _line(curve, curve.train_loss, "train", frame)
        parts += _line(curve, curve.validation_loss, "line", frame)
    parts += _bands(curves, epochs, frame.x)
    return _chart("Loss after each epoch", *parts)


def _losses(curves: Sequence[Curve]) -> list[float]:
    """The losses that the chart has room for: a training loss that tends to zero would flatten the others."""
    judged = [loss for curve in curves for loss in curve.validation_loss if loss > 0]
    least = min(judged, default=1.0) / _BELOW
    return [*judged, *(loss for curve in curves for loss in curve.train_loss if loss >= least)]


def _line(curve: Curve, losses: Sequence[float], class_: str, frame: _Frame) -> Iterator[Markup]:
    """A curve begins anew at each split: the network is another one."""
    for start, piece in _pieces(losses, curve.splits):
        places = [(frame.x(curve.start + start + i + 1), frame.y(loss)) for i, loss in enumerate(piece)]
        thin = places[:: math.ceil(len(places) / _MOST_VERTICES)]
        line = _points([*thin, places[-1]] if thin[-1] != places[-1] else thin)
        yield tag("polyline", points=line, class_=f"{class_} kind-{curve.kind}")


def _bands(curves: Sequence[Curve], epochs: int, x: Scale) -> Iterator[Markup]:
    """What answers a pointer: an invisible band per epoch, or per few of them."""
    step = max(1, math.ceil(epochs / _MOST_BANDS))
    for epoch in range(1, epochs + 1, step):
        left, right = x(epoch - 0.5), x(epoch + step - 0.5)
        words = " · ".join([f"epoch {epoch}", *_at(curves, epoch)])
        height = _HEIGHT - _BOTTOM - _TOP
        yield tag("rect", class_="band", x=left, y=_TOP, width=right - left, height=height, data_tip=words)


def _pieces(losses: Sequence[float], splits: Sequence[int]) -> Iterator[tuple[int, Sequence[float]]]:
    cuts = [0, *(split for split in splits if 0 < split < len(losses)), len(losses)]
    for start, end in itertools.pairwise(cuts):
        if end > start:
            yield start, losses[start:end]


def _at(curves: Sequence[Curve], epoch: int) -> Iterator[str]:
    for curve in curves:
        own = epoch - curve.start
        if 0 < own <= len(curve.validation_loss):
            training = f", training {curve.train_loss[own - 1]:.3g}" if own <= len(curve.train_loss) else ""
            yield f"{curve.name}: validation {curve.validation_loss[own - 1]:.3g}{training}"


def spectrum_chart(growth: GroupGrowth) -> Markup:
    """How many channels have which λ− and which λ+."""
    width, height, left, bottom = 340, 130, 14, 24
    values = [*growth.low, *growth.high]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1
    size = (high - low) / _BINS
    x = Scale(low, high, left, width - left)
    counts = {sign: _histogram(ends, low, size) for sign, ends in ((MINUS, growth.low), ("+", growth.high))}
    highest = max(a + b for a, b in zip(*counts.values(), strict=True))
    y = Scale(0, highest, height - bottom, 8)
    parts: list[str] = []
    for index in range(_BINS):
        base = 0
        for sign, class_ in ((MINUS, "minus"), ("+", "plus")):
            count = counts[sign][index]
            if not count:
                continue
            start, end = low + index * size, low + (index + 1) * size
            parts.append(
                tag("rect", class_=class_, x=x(start) + 0.5, width=x(end) - x(start) - 1, y=y(base + count),
                    height=y(base) - y(base + count),
                    data_tip=f"λ{sign} from {start:.3g} to {end:.3g}: {count} of {len(growth.low)} channels")
            )  # fmt: skip
            base += count
    axis = [tag("line", class_="base", x1=left, x2=width - left, y1=height - bottom, y2=height - bottom)]
    if low < 0 < high:
        axis.append(tag("line", class_="zero", x1=x(0), x2=x(0), y1=4, y2=height - bottom))
        axis.append(text(x(0), height - 7, "0", "tick", "middle"))
    if x(max(low, min(0.0, high))) > left + 40 or not low < 0 < high:
        axis.append(text(left, height - 7, f"{low:.2g}".replace("-", MINUS), "tick"))
    if x(max(low, min(0.0, high))) < width - left - 40 or not low < 0 < high:
        axis.append(text(width - left, height - 7, f"{high:.2g}".replace("-", MINUS), "tick", "end"))
    label = (
        f"{growth.name}: λ{MINUS} from {min(growth.low):.3g} to {max(growth.low):.3g}, "
        f"λ+ from {min(growth.high):.3g} to {max(growth.high):.3g}"
    )
    return _chart(
        label, *parts, group(*axis, aria_hidden="true"), width=width, height=height, class_="spectrum"
    )


def _histogram(values: Sequence[float], low: float, size: float) -> list[int]:
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, max(0, int((value - low) / size)))] += 1
    return counts


def bar(label: str, *shares: tuple[float, str]) -> Markup:
    """Horizontal bars from the left, one behind the other.

    Args:
        label: in words.
        shares: the length of a bar, 0 to 1, and its class; the first is drawn first.
    """
    bars = [
        tag("rect", class_=class_, width=f"{100 * min(1.0, max(0.0, share)):.2f}%", height="100%")
        for share, class_ in shares
    ]
    return tag("svg", *bars, class_="bar", role="img", aria_label=label, data_tip=label)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
