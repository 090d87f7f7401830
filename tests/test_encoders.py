"""What every kind of encoder promises, and torchaudio's Conformer as the reference for ours."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchaudio.models import Conformer

from asr.features import length_mask
from asr.models.bilstm import BiLstmEncoder
from asr.models.conformer import ConformerEncoder, MaskedConformerLayer
from asr.models.conv_encoder import ConvEncoder
from asr.models.conv_glu import ConvGluEncoder
from asr.records import Features

NUM_BINS, VOCAB_SIZE = 12, 7
CONVOLUTIONS = {"conv_channels": [3, 4], "conv_kernels": [[5, 3], [3, 3]], "conv_strides": [[2, 2], [1, 2]]}
KINDS: dict[str, tuple[type[ConvEncoder], dict[str, Any]]] = {
    "bilstm": (BiLstmEncoder, {"rnn_size": 6, "rnn_layers": 3, "rnn_norm": "batch"}),
    "conformer": (
        ConformerEncoder,
        {"size": 8, "num_layers": 3, "num_heads": 2, "feed_forward_size": 12, "kernel_size": 5},
    ),
    "conv_glu": (
        ConvGluEncoder,
        {"size": 8, "kernel_sizes": [3, 5, 3], "dilations": [1, 2, 4], "norm": "layer"},
    ),
    "conv_glu with batch norm": (
        ConvGluEncoder,
        {"size": 8, "kernel_sizes": [3, 5, 3], "dilations": [1, 2, 4], "norm": "batch"},
    ),
}


def make(kind: str, **changes: Any) -> ConvEncoder:
    torch.manual_seed(0)
    encoder, options = KINDS[kind]
    encoder = encoder(
        num_bins=NUM_BINS, vocab_size=VOCAB_SIZE, dropout=0.0, **{**CONVOLUTIONS, **options, **changes}
    )
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return encoder


def features(lengths: list[int], extra: int = 0) -> Features:
    torch.manual_seed(1)
    frames = torch.zeros(len(lengths), max(lengths) + extra, NUM_BINS)
    for row, length in zip(frames, lengths, strict=True):
        row[:length] = torch.randn(length, NUM_BINS)
    return Features(frames, torch.tensor(lengths))


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_normalised_and_as_long_as_announced(kind: str) -> None:
    encoder = make(kind)
    batch = features([23, 40, 1])
    emissions = encoder(batch)
    assert emissions.log_prob_lengths.tolist() == encoder.output_lengths(batch.feature_lengths).tolist()
    assert emissions.log_prob_lengths.tolist() == [12, 20, 1]
    assert emissions.log_probs.shape == (3, 20, VOCAB_SIZE)
    torch.testing.assert_close(emissions.log_probs.exp().sum(-1), torch.ones(3, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_recognition_never_waits_for_the_device(kind: str) -> None:
    """Shapes without values are enough: nothing looks at what a GPU has computed before it is asked for more."""
    batch = features([9, 30, 14])
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        on_device = Features(fake.from_tensor(batch.features), fake.from_tensor(batch.feature_lengths))
        assert make(kind).eval()(on_device).log_probs.shape == (3, 15, VOCAB_SIZE)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_company_is_heard(kind: str) -> None:
    encoder = make(kind).eval()
    lengths = [23, 40, 7]
    batch = features(lengths, extra=9)
    together = encoder(batch).log_probs
    for row, length in enumerate(lengths):
        alone = encoder(Features(batch.features[row : row + 1, :length], torch.tensor([length]))).log_probs[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_not_in_the_statistics_of_training(kind: str) -> None:
    some, more = features([23, 40]), features([23, 40], extra=30)
    one, other = make(kind).train(), make(kind).train()
    expected, found = one(some).log_probs, other(more).log_probs
    for row, length in enumerate((12, 20)):
        torch.testing.assert_close(found[row, :length], expected[row, :length], rtol=1e-4, atol=1e-5)
    for (name, expected_buffer), buffer in zip(one.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected_buffer, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind: str) -> None:
    encoder = make(kind, intermediate_layers=[1], self_conditioning=True).train()
    emissions = encoder(features([23, 40]), with_intermediate=True)
    weights = torch.randn(emissions.log_probs.shape)
    (emissions.log_probs * weights + emissions.intermediate[0] * weights).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # A bias before a batch norm has no effect; all others have.
        assert parameter.grad.abs().max() > 0 or name.endswith("bias"), name


@pytest.mark.parametrize("kind", KINDS)
def test_self_conditioning_acts_whether_or_not_intermediates_are_asked_for(kind: str) -> None:
    encoder = make(kind, intermediate_layers=[1, 2], self_conditioning=True).eval()
    plain = make(kind).eval()
    batch = features([23, 40])
    asked, unasked = encoder(batch, with_intermediate=True), encoder(batch)
    assert torch.equal(asked.log_probs, unasked.log_probs)
    assert len(asked.intermediate) == 2
    assert unasked.intermediate == ()
    assert not torch.allclose(plain(batch).log_probs, unasked.log_probs)


def torchaudio_reference(layers: nn.ModuleList, states: Tensor, lengths: Tensor) -> Tensor:
    first = layers[0]
    assert isinstance(first, MaskedConformerLayer)
    reference = Conformer(
        input_dim=states.shape[2], num_heads=first.self_attn.num_heads, ffn_dim=12, num_layers=len(layers),
        depthwise_conv_kernel_size=5,
    )  # fmt: skip
    reference.conformer_layers.load_state_dict(layers.state_dict())
    return reference.train(first.training)(states, lengths)[0]


@pytest.mark.parametrize("training", [False, True])
def test_conformer_layers_are_torchaudios_where_nothing_is_padded(training: bool) -> None:
    encoder = make("conformer").train(training)
    assert isinstance(encoder, ConformerEncoder)
    states, lengths = torch.randn(3, 17, 8), torch.full((3,), 17)
    expected = torchaudio_reference(encoder.layers, states, lengths)
    mask = length_mask(lengths, 17)
    found = states
    for layer in encoder.layers:
        found = layer(found.transpose(0, 1), ~mask).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_torchaudios_own_hears_the_padding() -> None:
    """Why its convolution is not used as it is."""
    encoder = make("conformer").eval()
    assert isinstance(encoder, ConformerEncoder)
    states = torch.randn(2, 17, 8)
    padded = torchaudio_reference(encoder.layers, states, torch.tensor([10, 17]))[0, :10]
    alone = torchaudio_reference(encoder.layers, states[:1, :10], torch.tensor([10]))[0]
    assert (padded - alone).abs().max() > 1e-3


def test_gated_convolutions_see_as_far_as_their_dilations_say() -> None:
    encoder = make("conv_glu").eval()
    reach = 1 * 1 + 2 * 2 + 1 * 4  # half of each kernel times its dilation
    states = torch.randn(1, 40, 12, requires_grad=True)
    mask = torch.ones(1, 40, dtype=torch.bool)
    encoder.project = nn.Linear(12, 8)
    found = states
    for number in (1, 2, 3):
        found = encoder.layer(number, found, torch.tensor([40]), mask)
    found[0, 20].sum().backward()
    assert states.grad is not None
    heard = states.grad[0].abs().sum(1).nonzero().squeeze(1)
    assert (int(heard.min()), int(heard.max())) == (20 - reach, 20 + reach)
