"""What an analysis holds, in bytes of live tensors: between products no more than its limit, at its peak
less than two training steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from growpipe.analyser import resources
from growpipe.analyser.api import analyse
from growpipe.analyser.curvature.closed_form import find_chain
from growpipe.analyser.curvature.metric import make_metric
from growpipe.analyser.curvature.operator import SplittingProducts
from growpipe.analyser.options import GrowthOptions
from growpipe.analyser.preparation import prepare
from growpipe.analyser.resources import ALWAYS_KEPT, KEPT, default_memory
from growpipe.analyser.spectra.drive import lanczos, random_start
from growpipe.graph_ops.errors import CheckFailed
from tests.helpers.splitting_cases import build

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Allocations(TorchDispatchMode):
    """The memory of tensors made inside: what is live now, and the most there was."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        # A view of what was made outside is not counted.
        given = {storage._cdata for storage in storages((args, kwargs))}
        for storage in storages(result):
            if storage._cdata not in given:
                self._live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    @property
    def live(self) -> int:
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        return sum(size for _, size in self._live.values())


@pytest.mark.parametrize("name", ["chain", "squeeze-excite"])
@pytest.mark.parametrize("limit", [0, 20_000, 60_000, 200_000, None])
def test_what_is_kept_between_products_is_within_the_limit(name, limit):
    """Closed forms, captured values and linearised paths together; not what parameters alone make."""
    case = build(name)
    parameters = sum(p.numel() * p.element_size() for p in case.model.parameters())
    vectors = random_start(case.operator.zeros(), 0)
    expected = case.operator.apply(vectors)
    with Allocations() as allocations:
        operator = case.operator_of(memory_limit=limit)
        for _ in range(2):
            found = operator.apply(vectors)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
            del found
        kept = allocations.live
    if limit is None:
        assert kept >= operator.kept_bytes > 20_000
    else:
        assert kept <= limit + parameters
    if limit == 0:
        assert kept <= parameters
        assert operator.kept_bytes == 0


def test_the_groups_at_hand_take_the_place_of_the_others(monkeypatch):
    """Too little for all groups: no pass over the program is made again once a group has all the room."""
    case = build("attention")
    every = range(len(case.operator.groups))
    vectors = dict(zip(every, random_start(case.operator.zeros(), 0), strict=True))
    expected = case.operator.apply(list(vectors.values()))
    visits, batches = case.operator._visits, case.operator._batches
    heads = next(i for i in visits.bends if i not in visits.flat)
    own = sum(visits.only(batch.kept, {heads}).nbytes for batch in batches)
    limit = int(1.1 * own)
    assert limit < case.operator.kept_bytes
    operator = case.operator_of(memory_limit=limit)
    passes = []
    capture = operator.program.capture
    monkeypatch.setattr(operator.program, "capture", lambda *a, **k: passes.append(a) or capture(*a, **k))
    wanted: list[set[int]] = [set(every), {heads}, {heads}, {heads}, set(every), set(every)]
    counts = []
    for positions in wanted:
        passes.clear()
        whole, _ = operator.apply_halves({i: vectors[i][None] for i in positions})
        for i in positions:
            torch.testing.assert_close(whole[i][0], expected[i], rtol=1e-12, atol=1e-15)
        assert operator._keeping.used <= limit
        counts.append(len(passes))
    assert counts[2:4] == [0, 0]
    assert counts[0] > 0 < counts[4]


def deep(channels: int = 12) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
    for _ in range(5):
        layers += [
            nn.BatchNorm2d(channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        ]  # fmt: skip
    return nn.Sequential(
        *layers, nn.BatchNorm2d(channels), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(channels, 4),
    )  # fmt: skip


@pytest.mark.parametrize("default", [False, True])
def test_an_analysis_peaks_below_two_training_steps(default, monkeypatch):
    monkeypatch.setattr(resources, "ALWAYS_KEPT", 0)  # more than all of it here
    torch.manual_seed(0)
    model, x, y = deep(), torch.randn(96, 3, 12, 12), torch.randint(0, 4, (96,))
    with Allocations() as step:
        cross_entropy(model(x[:32]), y[:32]).backward()
    model.zero_grad()
    prepared = prepare(model.eval(), (x[:2],), GrowthOptions(), CPU)
    limit = default_memory(prepared.program, (x[:32],), CPU) if default else 0
    with Allocations() as analysis:
        operator = SplittingProducts(prepared.program, limit)
        # The last one is small enough to be kept.
        for batch in (slice(0, 32), slice(32, 64), slice(64, 80)):
            operator.add((x[batch],), y[batch], cross_entropy)
        metric = make_metric("input", operator)

        def apply(vectors):
            whole, _ = operator.apply_halves({i: metric.raw(i, v) for i, v in vectors.items()})
            return {i: metric.white(i, v) for i, v in whole.items()}

        lanczos(apply, random_start(operator.zeros(), 0), max_steps=6, tolerance=0.0)
    assert operator.kept_bytes <= limit
    assert (operator.kept_bytes > 0) == default
    assert analysis.peak <= (1.8 if default else 1.3) * step.peak


def test_the_default_limit_is_a_share_of_a_training_step(monkeypatch):
    torch.manual_seed(0)
    model, x, y = deep(), torch.randn(512, 3, 16, 16), torch.randint(0, 4, (512,))
    with Allocations() as step:
        cross_entropy(model(x), y).backward()
    prepared = prepare(model.eval(), (x[:2],), GrowthOptions(), CPU)
    assert default_memory(prepared.program, (x[:1],), CPU) == ALWAYS_KEPT
    monkeypatch.setattr(resources, "ALWAYS_KEPT", 0)
    assert 0.6 * KEPT <= default_memory(prepared.program, (x,), CPU) / step.peak <= KEPT


def test_a_loss_that_is_not_finite_is_refused_where_nothing_is_kept():
    case = build("chain")
    operator = SplittingProducts(case.prepared.program, 0)
    operator.add((case.x * float("nan"),), case.y, case.loss_fn)
    with pytest.raises(CheckFailed, match="the loss of an analysis batch is nan"):
        operator.apply(operator.zeros())


def test_the_memory_limit_does_not_change_the_plan():
    torch.manual_seed(0)
    model, x, y = deep(4).eval(), torch.randn(64, 3, 6, 6), torch.randint(0, 4, (64,))
    plans = [
        analyse(
            model, cross_entropy, [(x, y)], (x[:2],), micro_batch=16, ranking="predicted", epsilon=0.1,
            memory_limit=limit,
        )
        for limit in (None, 0, 2**30)
    ]  # fmt: skip
    assert len({plan.content_hash for plan in plans}) == 1


@pytest.mark.parametrize("limit", [0, None])
def test_normalisations_wherever_they_stand_in_a_chain(limit):
    """Behind the producer, one upon another, behind a depthwise convolution, before one, and alone."""
    width = 4

    def depthwise() -> nn.Conv2d:
        return nn.Conv2d(width, width, 3, padding=1, groups=width)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.SiLU(),
        nn.BatchNorm2d(width), depthwise(), nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.Tanh(),
        nn.BatchNorm2d(width), nn.SiLU(), depthwise(), nn.BatchNorm2d(width), nn.Sigmoid(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2),
    ).double().eval()  # fmt: skip
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    x, y = torch.randn(6, 3, 7, 7, dtype=torch.float64), torch.randint(0, 2, (6,))
    operator = SplittingProducts(prepare(model, (x[:2],), GrowthOptions(), CPU).program, limit)
    assert all(find_chain(group) is not None for group in operator.groups)
    general = SplittingProducts(operator.program, closed_forms=False)
    for analysis in (operator, general):
        for part in (slice(0, 4), slice(4, 6)):  # the second is made by what the first has left for all
            analysis.add((x[part],), y[part], cross_entropy)
    vectors = random_start(operator.zeros(), 0)
    for _ in range(2):
        torch.testing.assert_close(operator.apply(vectors), general.apply(vectors), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("limit", [0, None])
def test_a_normalisation_over_positions_stays_what_it_is(limit):
    """As many positions as channels: only the axis tells a normalisation of one from that of the other."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
            self.flat, self.last = nn.BatchNorm1d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(self.norm(self.first(x))).mean(1)
            return self.last(torch.tanh(self.flat(self.second(y))))

    torch.manual_seed(0)
    model = Positions().double().eval()
    for norm in (model.norm, model.flat):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    x, y = torch.randn(6, 4, 3, dtype=torch.float64), torch.randint(0, 2, (6,))
    operator = SplittingProducts(prepare(model, (x[:2],), GrowthOptions(), CPU).program, limit)
    operator.add((x,), y, cross_entropy)
    with torch.no_grad():
        assert operator.captured(0).loss == pytest.approx(float(cross_entropy(model(x), y)), rel=1e-12)
    general = SplittingProducts(operator.program, closed_forms=False)
    general.add((x,), y, cross_entropy)
    vectors = random_start(operator.zeros(), 0)
    torch.testing.assert_close(operator.apply(vectors), general.apply(vectors), rtol=1e-10, atol=1e-14)
