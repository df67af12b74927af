"""No analysis makes a native kernel write beyond its memory, whatever the shapes, strides and formats."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import nn

from growpipe.analyser.program.convolution import Convolution
from growpipe.torch_module.memory_format import contiguous_where_needed
from tests.helpers.heap_check import MALLOC_DEBUG, heap_faults


def glibc_checks_its_heap() -> bool:
    try:
        ctypes.CDLL(MALLOC_DEBUG)
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not glibc_checks_its_heap(), reason="needs glibc's libc_malloc_debug")
@pytest.mark.parametrize(("instructions", "count"), [("AVX2", 4), ("DEFAULT", 2)])
def test_analyses_leave_the_heap_whole(instructions, count):
    """Fewer instructions than the processor has are other kernels: those of an older one."""
    assert heap_faults(count, 2, ONEDNN_MAX_CPU_ISA=instructions) == f"{count} analyses\n"


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(2, 2), (3, 1), (1, 2)])
def test_the_weight_gradient_of_a_strided_pointwise_convolution(stride, groups, transposed):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 9, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    w = torch.randn(4, 6 // groups, 1, 1, dtype=torch.float64)
    w = w if transposed else torch.randn(6, 4 // groups, 1, 1, dtype=torch.float64)
    extra = tuple(step - 1 for step in stride) if transposed else (0, 0)
    conv = Convolution.of(w, stride, 0, 1, groups, transposed, extra)
    g = torch.randn_like(conv.forward(x, w))
    w.requires_grad_()
    (expected,) = torch.autograd.grad(conv.forward(x.contiguous(), w), w, g.contiguous())
    torch.testing.assert_close(conv.backward(g, x, w, 1), expected)


def test_training_gives_such_a_layer_contiguous_inputs_and_leaves_no_hook():
    seen = []

    class Watched(nn.Conv2d):
        def forward(self, x):
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    few, many, plain = Watched(4, 8, 1, 2), Watched(8, 8, 1, 2), Watched(8, 8, 1)
    model = nn.Sequential(few, many, plain)
    x = torch.randn(2, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    with contiguous_where_needed(model):
        few(x), many(torch.cat([x, x], 1)), plain(torch.cat([x, x], 1))
    assert seen == [False, True, True]
    few(x)
    assert seen[-1]
    assert not any(layer._forward_pre_hooks for layer in model)
