"""What somebody who misspelt a name may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]

# What other tools call a thing, by what it is called here.
_ELSEWHERE = {
    "accumulate": ("accumulate_grad_batches", "gradient_accumulation_steps"),
    "batch_size": ("batch", "bs", "per_device_train_batch_size"),
    "compile": ("torch_compile",),
    "data": ("dataset", "dataloader", "loader"),
    "epochs": ("max_epochs", "num_epochs", "num_train_epochs"),
    "learning_rate": ("lr", "max_lr"),
    "loss": ("criterion", "loss_fn", "loss_function", "objective"),
    "macs": ("flops", "madds"),
    "metric": ("metrics",),
    "milliseconds": ("latency", "ms"),
    "model": ("net", "network"),
    "optimizer": ("optim", "optimiser"),
    "parameters": ("params",),
    "patience": ("early_stopping_patience",),
    "precision": ("amp", "bf16", "dtype"),
    "seed_control": ("baseline", "control"),
    "warm_up": ("warmup", "warmup_epochs"),
    "weight_decay": ("decay", "wd"),
    "weights": ("checkpoint", "pretrained"),
}
_HERE = {other: name for name, others in _ELSEWHERE.items() for other in others}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or an empty string when nothing known is close."""
    known = list(known)
    if _HERE.get(given) in known:
        return f"; did you mean {_HERE[given]!r}?"
    close = difflib.get_close_matches(given, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
