"""Do two forms of one model compute the same? What is asked of an edit before its result is published.

Both run in onnxruntime, in a process of their own, on seeded random inputs. The reference is also compared
with itself: what differs between its own lowest and highest optimisation, or between two of its own runs,
cannot be asked of the other form. Inputs that the reference does not accept prove nothing either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from growpipe.checks.child.model_process import ModelHung, ModelProcess
from growpipe.checks.input_sets import DYNAMIC_SIZES
from growpipe.checks.measure.compare import Divergence, compare_each
from growpipe.checks.measure.informative import any_is_informative, is_informative, paired_hidden_values
from growpipe.checks.measure.inputs import InputSpec, batch_dims, input_specs, random_inputs, sizes_of
from growpipe.checks.measure.memory import MemoryRoom
from growpipe.checks.measure.tolerance import ROUNDING, default_relative
from growpipe.checks.measure.trace import OtherModel
from growpipe.environment import require_installed
from growpipe.graph_ops.arrays import AnyArray
from growpipe.graph_ops.errors import CheckFailed, GrowpipeError, MissingEnvironment, UsageError
from growpipe.graph_ops.files.load_save import load_model

__all__ = ["Equivalence", "compare_forms"]

_SEEDS = (0, 1)
_BATCHES = (1, 3)
_MEMORY_MB = 16384
_INPUTS_MB = 512
"""What one set of random inputs may take: a file of 300 bytes may declare gigabytes of them."""
_ENOUGH_SECONDS = 30.0
"""After this, one set of inputs that fits is enough, and sizes that do not fit are given up."""
_NAMED = 3
_FEW = 0.01
"""The share of integers of an output, such as classes, that rounding may decide."""

Outputs = Mapping[str, AnyArray]


@dataclass(frozen=True)
class Equivalence:
    """The result of a comparison that found no difference.

    Attributes:
        verified: whether the forms were compared on at least one set of inputs.
        reason: why they were not; empty if they were.
        inputs: how many sets of inputs both ran on, each at the lowest and the highest optimisation.
        relative: the largest difference, over the largest value of the output.
        limit: what the difference may be.
        unshown: the outputs that hardly depend on the inputs tried, and neither do the values behind them. A
            fault would not show in them.
    """

    verified: bool
    reason: str = ""
    inputs: int = 0
    relative: float | None = None
    limit: float | None = None
    unshown: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.verified:
            return f"not verified: {self.reason}"
        sets = "1 set" if self.inputs == 1 else f"{self.inputs} sets"
        return (
            f"verified in onnxruntime on {sets} of random inputs: relative difference {self.relative:.1e}, "
            f"limit {self.limit:.1e}{self._remark}"
        )

    @property
    def _remark(self) -> str:
        if not self.unshown:
            return ""
        names = ", ".join(map(repr, self.unshown[:_NAMED])) + (" …" if len(self.unshown) > _NAMED else "")
        return f"; a fault in {names} would not show, as these inputs hardly change it"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class _Unproved(Exception):
    """The inputs tell nothing; the text is the reason."""


def compare_forms(reference: Path, candidate: Path, what: str) -> Equivalence:
    """Compare a model with another form of it.

    Args:
        reference: the model.
        candidate: the form, with the same inputs and outputs.
        what: the name of the form, for the message.

    Raises:
        CheckFailed: the form computes something else, or does not run where the model does. The message names
            the first node that differs, of those that both forms have.
    """
    try:
        require_installed("onnxruntime", "cpu", "the comparison")
    except MissingEnvironment:
        return Equivalence(False, "onnxruntime is not installed")
    models = load_model(reference), load_model(candidate)
    specs = input_specs(models[0])
    if specs is None:
        return Equivalence(False, "an input is not a tensor of known rank")
    if not models[0].graph.outputs:
        return Equivalence(False, "the model has no outputs")
    names = [str(output.name) for output in models[0].graph.outputs]
    behind = dict(zip(names, paired_hidden_values(*models), strict=False))
    with ModelProcess(memory_mb=_MEMORY_MB) as process:
        limit = default_relative(*models)
        return _Comparison(reference, candidate, what, process, limit, behind).over(specs)


@dataclass
class _Comparison:
    """One comparison of two files.

    Attributes:
        reference, candidate, what: as of `compare_forms`.
        process: where both run.
        limit: of the relative difference.
        behind: by output the values that it is computed from, see `paired_hidden_values`.
        count: of the inputs compared so far.
        worst: the largest relative difference so far.
    """

    reference: Path
    candidate: Path
    what: str
    process: ModelProcess
    limit: float
    behind: Mapping[str, Mapping[str, str]]
    count: int = 0
    worst: float = 0.0

    def over(self, specs: tuple[InputSpec, ...]) -> Equivalence:
        """Compare on random inputs of growing sizes, until the model runs on some."""
        started = time.monotonic()
        reason = ""
        for size in self._sizes(specs):
            # First all runs of one form, then all of the other: a large model is not loaded in both at once.
            expected: list[tuple[Outputs, dict[bool, Outputs]]] = []
            try:
                for feed in _feeds(specs, size):
                    if expected and time.monotonic() - started > _ENOUGH_SECONDS / 2:
                        break
                    expected.append((feed, self._expected(feed, repeat=not expected)))
            except _Unproved as unproved:
                reason = reason or str(unproved)  # the other inputs of this size fit no better
            try:
                for inputs, outputs in expected:
                    if self.count and time.monotonic() - started > _ENOUGH_SECONDS:
                        break
                    self._compare(inputs, outputs)
            except _Unproved as unproved:
                reason = reason or str(unproved)
            if self.count:
                return self._verdict(expected[: self.count] if specs else [])
            if time.monotonic() - started > _ENOUGH_SECONDS:
                break
        return Equivalence(False, reason or "no random inputs can be made")

    def _verdict(self, compared: Sequence[tuple[Outputs, Mapping[bool, Outputs]]]) -> Equivalence:
        """What was shown by inputs on which the outputs agree, with the outputs of the reference.

        Raises:
            CheckFailed: the forms differ in a value behind an output.
        """
        unshown = []
        names = list(compared[0][1][True]) if compared else []
        for name in names:
            if not is_informative([outputs[True][name] for _, outputs in compared], self.limit):
                feeds = [feed for feed, _ in compared]
                if not self._is_shown_behind(name, feeds):
                    unshown.append(name)
        if names and len(unshown) == len(names):
            return Equivalence(
                False, "random inputs hardly change what the model computes, so no fault would show"
            )
        return Equivalence(True, "", self.count, self.worst, self.limit, tuple(unshown))

    def _is_shown_behind(self, output: str, feeds: Sequence[Outputs]) -> bool:
        """Compare what an output is computed from, as far as the two forms have it in common.

        Returns:
            Whether a fault would have shown.

        Raises:
            CheckFailed: the forms differ.
        """
        pairs = self.behind.get(output, {})
        if not pairs:
            return False
        runs: list[Outputs] = []
        for feed in feeds:
            try:
                expected = self.process.run_inner(self.reference, feed, list(pairs), "cpu")
                actual = self.process.run_inner(self.candidate, feed, list(pairs.values()), "cpu")
            except CheckFailed:
                return False  # no inner values, such as those of a model of gigabytes
            self._judge(expected, {name: actual[pairs[name]] for name in pairs}, feed)
            runs.append(expected)
        return any_is_informative(runs, self.limit)

    def _sizes(self, specs: tuple[InputSpec, ...]) -> tuple[int, ...]:
        batches = batch_dims(specs)
        free = any(isinstance(d, str) and d not in batches for spec in specs for d in spec.shape)
        return (*DYNAMIC_SIZES, 512) if free else DYNAMIC_SIZES[:1]

    def _expected(self, feed: Outputs, *, repeat: bool) -> dict[bool, Outputs]:
        """The outputs of the reference at the lowest and the highest optimisation.

        Args:
            feed: the inputs.
            repeat: whether it runs twice, to see whether it gives the same again.

        Raises:
            _Unproved: the inputs tell nothing.
        """
        expected: dict[bool, Outputs] = {}
        try:
            for level in (False, True):
                expected[level] = self._run(self.reference, feed, level)
            others = [expected[False]]
            if repeat:
                others.append(self._run(self.reference, feed, True))
        except CheckFailed as error:
            raise _Unproved(f"the model does not run on random inputs: {error}") from None
        for other in others:
            try:
                noise = _worst(compare_each(expected[True], other)).relative
            except CheckFailed:
                noise = math.inf
            if not noise <= self.limit:
                raise _Unproved("the model itself differs from run to run, or with the level of optimisation")
        return expected

    def _compare(self, feed: Outputs, expected: Mapping[bool, Outputs]) -> None:
        """Compare on one set of inputs.

        Raises:
            _Unproved: the candidate takes too long.
            CheckFailed: the forms differ.
        """
        for level in (False, True):
            try:
                actual = self._run(self.candidate, feed, level)
            except ModelHung as error:
                raise _Unproved(f"{self.what} takes too long: {error}") from None
            except CheckFailed as error:
                raise CheckFailed(f"{self.what} does not run where the model does: {error}") from None
            self._judge(expected[level], actual, feed)
        self.count += 1

    def _run(self, path: Path, feed: Outputs, optimised: bool) -> dict[str, AnyArray]:
        return self.process.run(path, feed, "cpu", optimised=optimised)

    def _judge(self, expected: Outputs, actual: Outputs, feed: Outputs) -> None:
        try:
            each = compare_each(expected, actual)
        except CheckFailed as error:
            raise CheckFailed(f"{self.what} computes something else: {error}{self._place(feed)}") from None
        by_name = zip(each.values(), expected.values(), actual.values(), strict=True)
        for divergence, before, after in by_name:
            if divergence.relative > self.limit and not _is_rounding(divergence, before, after):
                raise CheckFailed(
                    f"{self.what} computes something else: relative difference {divergence.relative:.2g} of "
                    f"output {divergence.output!r}, limit {self.limit:.1e}{self._place(feed)}"
                )
            if divergence.relative <= self.limit:
                self.worst = max(self.worst, divergence.relative)

    def _place(self, feed: Outputs) -> str:
        """The first node that differs, for a message; empty if it is not found."""
        try:
            place = self.process.first_diverging(
                self.candidate, feed, self.limit, OtherModel(self.reference), "cpu"
            )
        except GrowpipeError:
            return ""
        if place is None:
            return ""
        return f"; the first comparable node that differs is {place.operator} {place.node or place.tensor!r}"


def _feeds(specs: tuple[InputSpec, ...], size: int) -> Iterator[dict[str, AnyArray]]:
    batches = _BATCHES if batch_dims(specs) else _BATCHES[:1]
    for seed in _SEEDS:
        for batch in batches:
            try:
                yield random_inputs(specs, sizes_of(specs, batch, {}, size), seed, MemoryRoom(_INPUTS_MB))
            except (UsageError, CheckFailed):
                return


def _worst(each: Mapping[str, Divergence]) -> Divergence:
    return max(each.values(), key=lambda divergence: divergence.relative)


def _is_rounding(divergence: Divergence, before: AnyArray, after: AnyArray) -> bool:
    if before.dtype.kind == "f":
        return divergence.max_abs <= ROUNDING
    return bool(np.mean(before != after) <= _FEW)
