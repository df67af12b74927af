"""Which precision the products of float32 tensors have.

Many processors have units that multiply rounded factors several times as fast, and sum the products in
float32. Factors are rounded to bfloat16, with 8 significant bits, on a CPU, and to TF32, with 11, on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from growpipe.graph_ops.errors import UsageError
from growpipe.torch_module.outputs import denormals_as_zero, own_precision

__all__ = ["has_rounding_units", "own_settings", "rounded_factors", "rounds_factors", "whole_factors"]


def has_rounding_units(device: torch.device) -> bool:
    """Whether products of rounded factors are faster there: on a CPU with AMX, on a GPU from Ampere on."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@contextmanager
def _settings(matmul: str, cudnn: bool) -> Iterator[None]:
    """These settings of torch inside, those of before afterwards."""
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        # torch does not tell any more once its newer interface has set one of them.
        raise UsageError(
            "torch was told its precision by torch.backends.….fp32_precision, which torch itself does not "
            "read everywhere; call torch.set_float32_matmul_precision instead"
        ) from None
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def whole_factors(*, tf32: bool = False) -> Iterator[None]:
    """Factors of float32 inside, whatever torch was told before; on CUDA those of TF32 if ``tf32``.

    Raises:
        UsageError: torch was told by settings that it does not read everywhere.
    """
    with _settings("high" if tf32 else "highest", tf32):
        yield


@contextmanager
def own_settings(*, tf32: bool = False) -> Iterator[None]:
    """torch as the analyser needs it inside, whatever the caller has told it; as before afterwards.

    Gradients are taken, in the type of the tensors, with factors of float32 (see `whole_factors`).
    """
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        own_precision(),
        whole_factors(tf32=tf32),
        denormals_as_zero(),
    ):
        yield


@contextmanager
def rounded_factors() -> Iterator[None]:
    """Rounded factors inside; on a CPU those of matrix products, and of convolutions by `rounds_factors`.

    torch's own setting for convolutions on a CPU makes depthwise ones take up to three times as long.
    """
    with _settings("medium", True):
        yield


def rounds_factors(value: Tensor) -> bool:
    """Whether what multiplies this tensor on a CPU is to round its factors to bfloat16."""
    if not value.is_cpu or value.dtype != torch.float32:
        return False
    setting: str = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    return setting == "bf16"
