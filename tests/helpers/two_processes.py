"""Run by test_processes under the environment of torchrun: analyse, and print what every rank must share."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import analyse

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "small micro-batches": {"micro_batch": 5, "stability": 1.0, "solver": "lanczos", "noise_share": 2.0},
}


def plan_facts(options: dict[str, Any]) -> dict[str, Any]:
    """A small plan, and all of it that must not depend on the number of processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(4 * 16, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    ).eval()
    x = torch.randn(120, 1, 6, 6)
    y = torch.randint(0, 3, (120,))
    batches = [(x[i : i + 20], y[i : i + 20]) for i in range(0, 120, 20)]
    plan = analyse(model, cross_entropy, batches, (x[:2],), **options)
    return {
        "hash": plan.content_hash,
        "source": {group.group: group.source.tolist() for group in plan.groups},
        "epsilon": plan.epsilon,
        "predicted": plan.predicted_change,
        "realised": plan.realised_change,
        "ends": {
            name: [group["lowest"], group["highest"]]
            for name, group in plan.notes["analysis"]["groups"].items()
        },
        "samples": plan.notes["analysis"]["samples"],
        "sets": [
            {key: stage[key] for key in ("samples", "products", "products_per_group")}
            for stage in plan.notes["analysis"]["stages"]
        ],
    }


if __name__ == "__main__":
    json.dump({name: plan_facts(options) for name, options in OPTIONS.items()}, sys.stdout)
