"""LSTM layers in bfloat16 on a CPU: oneDNN's forward pass with a faster way back.

oneDNN's backward pass adds to the gradients of the weights frame by frame: megabytes are read and written for a
few utterances, and large layers take longer in bfloat16 than in float32. Here only what is recurrent goes frame by
frame.
The activations are recomputed from the outputs, and the gradients of the weights come from all frames, by one
matrix product each.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asr.device import has_matrix_units

# Units per layer; below, oneDNN's is faster: its gradients fit the cache. Matrix units shorten the products here.
MIN_SIZE = 256 if has_matrix_units() else 320
_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class Bf16Lstms(torch.autograd.Function):
    """Outputs of several LSTM layers side by side, ``(layers, frames, batch, size)``.

    Args (bfloat16):
        inputs: ``(layers, frames, batch, input_size)``.
        input_weights: ``(layers, 4 * size, input_size)``, as in ``nn.LSTM``.
        recurrent_weights: ``(layers, 4 * size, size)``.
        biases: ``(layers, 4 * size)``.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, input_weights: Tensor, recurrent_weights: Tensor, biases: Tensor
    ) -> Tensor:
        start = inputs.new_zeros(1, inputs.shape[2], recurrent_weights.shape[2])
        layers = zip(inputs, input_weights, recurrent_weights, biases, torch.zeros_like(biases), strict=True)
        outputs = torch.stack(
            [
                torch.lstm(one, (start, start), weights, True, 1, 0.0, False, False, False)[0]
                for one, *weights in layers
            ]
        )
        ctx.save_for_backward(inputs, input_weights, recurrent_weights, biases, outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs, input_weights, recurrent_weights, biases, outputs = ctx.saved_tensors
        before = torch.cat([torch.zeros_like(outputs[:, :1]), outputs[:, :-1]], dim=1).flatten(1, 2)
        rows = inputs.flatten(1, 2)
        sums = torch.baddbmm(biases.unsqueeze(1), rows, input_weights.transpose(1, 2))
        sums.baddbmm_(before, recurrent_weights.transpose(1, 2))
        sums = sums.view(*outputs.shape[:3], -1)
        gradients = _through_frames(gradient, sums, recurrent_weights).flatten(1, 2)
        across = gradients.transpose(1, 2)
        return (
            torch.bmm(gradients, input_weights).view_as(inputs),
            torch.bmm(across, rows),
            torch.bmm(across, before),
            gradients.sum(dim=1),
        )


def _through_frames(gradient: Tensor, sums: Tensor, recurrent_weights: Tensor) -> Tensor:
    """Gradient of the outputs → gradient of what goes into the gates, ``(layers, frames, batch, 4 * size)``.

    Args:
        gradient: ``(layers, frames, batch, size)``.
        sums: what goes into the gates.
        recurrent_weights: ``(layers, 4 * size, size)``.
    """
    frames, cells = _gates_and_cells(_by_frame_and_gate(sums))
    result = torch.empty_like(sums)
    rows = result.unbind(1)
    gradients = torch.empty_like(frames[0])  # of one frame
    by_enter, by_keep, by_new, by_leave = gradients
    by_cell, by_output, part, squashed = (torch.zeros_like(cells[0]) for _ in range(4))
    steps = list(
        zip(frames, cells[:-1], cells[1:], gradient.unbind(1), _by_frame_and_gate(result), strict=True)
    )
    for number in reversed(range(len(steps))):
        (enter, keep, new, leave), cell_before, cell, by_own_output, by_gate = steps[number]
        by_output.copy_(by_own_output)
        if number + 1 < len(steps):
            by_output += torch.bmm(rows[number + 1], recurrent_weights)
        torch.tanh(cell, out=squashed)
        _sigmoid_backward(torch.mul(by_output, squashed, out=part), leave, grad_input=by_leave)
        by_cell += _tanh_backward(torch.mul(by_output, leave, out=part), squashed, grad_input=part)
        _sigmoid_backward(torch.mul(by_cell, new, out=part), enter, grad_input=by_enter)
        _sigmoid_backward(torch.mul(by_cell, cell_before, out=part), keep, grad_input=by_keep)
        _tanh_backward(torch.mul(by_cell, enter, out=part), new, grad_input=by_new)
        by_cell *= keep
        by_gate.copy_(gradients)
    return result


def _gates_and_cells(sums: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each frame the gates, float32 ``(4, layers, batch, size)``, and the cells before and after them."""
    frames = []
    cells = [torch.zeros_like(sums[0][0], dtype=torch.float32, memory_format=torch.contiguous_format)]
    for own_sums in sums:
        gates = own_sums.to(torch.float32, memory_format=torch.contiguous_format)
        enter, keep, new, leave = gates
        gates[:2].sigmoid_()
        new.tanh_()
        leave.sigmoid_()
        cells.append((keep * cells[-1]).addcmul_(enter, new))
        frames.append(gates)
    return frames, cells


def _by_frame_and_gate(sums: Tensor) -> Sequence[Tensor]:
    """``(layers, frames, batch, 4 * size)`` → views of each frame, ``(4, layers, batch, size)``."""
    return sums.unflatten(3, (4, -1)).permute(1, 3, 0, 2, 4).unbind(0)
