"""Run by test_processes under the environment of torchrun: analyse, and print what every rank must share."""

from __future__ import annotations

import json
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from growpipe.analyser import analyse


def plan_facts() -> dict:
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
    plan = analyse(model, cross_entropy, batches, (x[:2],))
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
    }


if __name__ == "__main__":
    json.dump(plan_facts(), sys.stdout)
