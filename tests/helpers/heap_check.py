"""Analyses of many small networks, each in a child process whose heap glibc checks.

Run by hand, ``python -m tests.helpers.heap_check COUNT [SEED]`` prints every configuration whose child died,
and how many there were. `heap_faults` is what the tests call.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MALLOC_DEBUG = "libc_malloc_debug.so.0"
"""Since version 2.34 glibc checks its heap only if this library is loaded first."""

LAYOUTS = ("contiguous", "channels last", "permuted", "every second row", "every second sample")


@dataclass(frozen=True)
class Configuration:
    """One analysis: a network, the shape and memory format of its inputs, and how they are worked on."""

    network: str
    shape: tuple[int, ...]
    samples: int
    micro_batch: int
    layout: str
    dtype: str
    keep: bool
    seed: int


def strided_block(seed: int) -> nn.Module:
    """A residual block with a shortcut of its own, both of random strides, kernels, groups and channels."""
    draw = random.Random(seed)
    stem, out = draw.choice([2, 3, 4, 6, 7, 8, 12]), draw.choice([4, 8, 10])
    stride, groups = draw.choice([1, 2, 2, 2, 3]), draw.choice([1, 1, 2])
    stem, kernel = stem - stem % groups or groups, draw.choice([1, 3, 5])

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, stem, 3, padding=1)
            self.first = nn.Conv2d(stem, out, kernel, stride, kernel // 2, groups=groups)
            self.second = nn.Conv2d(out, out, 1)
            self.shortcut = nn.Conv2d(stem, out, 1, stride, groups=groups)
            self.up = nn.ConvTranspose2d(out, 5, 1, draw.choice([1, 2]), groups=1)
            self.head = nn.Linear(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.silu(self.stem(x))
            x = (self.second(self.first(x).relu()) + self.shortcut(x)).tanh()
            return self.head(self.up(x).relu().mean((2, 3)))

    return Block().eval()


def configurations(count: int, seed: int) -> list[Configuration]:
    """Random configurations over all families, all splitting cases and strided blocks."""
    from tests.helpers.networks import FAMILIES
    from tests.helpers.splitting_cases import CASES

    draw = random.Random(seed)
    shapes = {
        **{f"family {name}": shape for name, (_, shape) in FAMILIES.items()},
        **{f"case {name}": case.shape for name, case in CASES.items()},
    }
    found = []
    for number in range(count):
        name = "strided block" if number % 3 == 0 else draw.choice(sorted(shapes))
        shape = shapes.get(name, (3, 8, 8))
        scale = draw.choice([1, 2, 3]) if len(shape) == 3 else 1
        extra = draw.choice([0, 0, 1]) if scale > 1 else 0
        shape = (shape[0], *(scale * n + extra for n in shape[1:])) if len(shape) == 3 else shape
        found.append(
            Configuration(
                name, shape, draw.choice([16, 37, 96, 200]), draw.choice([7, 32, 128]), draw.choice(LAYOUTS),
                draw.choice(["float32", "float32", "float64"]), draw.random() < 0.5, draw.randrange(2**31),
            )
        )  # fmt: skip
    return found


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory format, where the rank allows it."""
    match layout:
        case "channels last" if x.ndim == 4:
            return x.contiguous(memory_format=torch.channels_last)
        case "permuted":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        case "every second row" if x.ndim > 2:
            return x.repeat_interleave(2, -2)[..., ::2, :]
        case "every second sample":
            return x.repeat_interleave(2, 0)[::2]
    return x


def analyse_once(chosen: Configuration) -> None:
    """The whole analysis of one configuration; a network that does not take the shape is passed over."""
    from growpipe.analyser import analyse
    from growpipe.graph_ops.errors import NothingToSplit, UsageError
    from tests.helpers.networks import FAMILIES, seeded
    from tests.helpers.splitting_cases import CASES

    kind, _, name = chosen.network.partition(" ")
    torch.manual_seed(chosen.seed)
    if kind == "family":
        model = seeded(FAMILIES[name][0])
    elif kind == "case":
        model = CASES[name].build().eval()
    else:
        model = strided_block(chosen.seed)
    model = model.to(getattr(torch, chosen.dtype))
    x = _laid_out(torch.randn(chosen.samples, *chosen.shape).to(getattr(torch, chosen.dtype)), chosen.layout)
    if chosen.layout == "channels last" and x.ndim == 4:
        model = model.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            target = torch.randn_like(model(x))
        analyse(
            model, nn.functional.mse_loss, [(x, target)], (x[:2],), micro_batch=chosen.micro_batch,
            memory_limit=None if chosen.keep else 0, line_search_samples=16, ranking_samples=16,
            metric=random.Random(chosen.seed).choice(["input", "euclidean"]),
        )  # fmt: skip
    except (NothingToSplit, UsageError, RuntimeError):
        return


def main(count: int, seed: int) -> None:
    """Fork once per configuration; print those that died, and the number of all."""
    torch.set_num_threads(1)
    for chosen in configurations(count, seed):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            analyse_once(chosen)
            # The heap is checked once more at every block that is freed.
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            print(f"died with status {status}: {asdict(chosen)}", flush=True)
    print(f"{count} analyses")


def heap_faults(count: int, seed: int, **environment: str) -> str:
    """What `main` prints under glibc's heap checks, and with further variables of the environment."""
    checked: dict[str, Any] = {**os.environ, **environment, "LD_PRELOAD": MALLOC_DEBUG, "MALLOC_CHECK_": "3"}
    command = [sys.executable, "-m", "tests.helpers.heap_check", str(count), str(seed)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=checked, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
