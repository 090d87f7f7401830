"""Encoder and acoustic model: packed LSTMs as reference, padding invariance, norms, precision, lengths."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from asr.features import LogMel, length_mask
from asr.models import bf16_lstm, bilstm
from asr.models.acoustic import AcousticModel
from asr.models.bilstm import BiLstm, BiLstmEncoder, reversed_order
from asr.models.encoder import Encoder
from asr.models.layers import ChannelsLastConv2d, Dropout, MaskedBatchNorm, pick_frames, strided_lengths
from asr.records import Features

VOCAB_SIZE = 11


def front_end(**changes: Any) -> LogMel:
    options: dict[str, Any] = {
        "sample_rate": 16000,
        "window_seconds": 0.025,
        "hop_seconds": 0.010,
        "dither": 0.0,
        "normalise": "utterance",
        "num_mels": 24,
        "low_hz": 20.0,
        "high_hz": None,
    }
    return LogMel(**{**options, **changes})


def encoder(**changes: Any) -> BiLstmEncoder:
    options: dict[str, Any] = {
        "num_bins": 24,
        "vocab_size": VOCAB_SIZE,
        "conv_channels": [4, 6],
        "conv_kernels": [[11, 9], [5, 3]],
        "conv_strides": [[2, 2], [2, 2]],
        "rnn_size": 16,
        "rnn_layers": 2,
        "rnn_norm": "batch",
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    return BiLstmEncoder(**{**options, **changes})


def with_statistics(model: nn.Module) -> nn.Module:
    """Give batch norms running statistics that are not 0 and 1, as training does."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def feature_batch(lengths: list[int], num_bins: int = 24, extra: int = 0) -> Features:
    torch.manual_seed(1)
    frames = pad_sequence([torch.randn(length, num_bins) for length in lengths], batch_first=True)
    return Features(nn.functional.pad(frames, (0, 0, 0, extra)), torch.tensor(lengths))


def waveform_batch(lengths: list[int], extra: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    waveforms = pad_sequence([0.1 * torch.randn(length) for length in lengths], batch_first=True)
    return nn.functional.pad(waveforms, (0, extra)), torch.tensor(lengths)


# ------------------------------------------------------------------ BiLstm


def packed_reference(ours: BiLstm) -> nn.LSTM:
    """PyTorch's bidirectional LSTM with the weights of ``ours``."""
    reference = nn.LSTM(
        ours.forward_lstm.input_size, ours.forward_lstm.hidden_size, batch_first=True, bidirectional=True
    )
    state = {name: value.clone() for name, value in ours.forward_lstm.state_dict().items()}
    state |= {f"{name}_reverse": value.clone() for name, value in ours.backward_lstm.state_dict().items()}
    reference.load_state_dict(state)
    return reference


def run_packed(lstm: nn.LSTM, states: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
    return pad_packed_sequence(lstm(packed)[0], batch_first=True, total_length=states.shape[1])[0]


@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=5), extra=st.integers(0, 6))
@settings(deadline=None, max_examples=25)
def test_bilstm_equals_packed_sequences(lengths: list[int], extra: int) -> None:
    torch.manual_seed(3)
    ours = BiLstm(5, 7)
    reference = packed_reference(ours)
    counts = torch.tensor(lengths)
    # Whatever stands in the padding must have no effect.
    states = torch.randn(len(lengths), max(lengths) + extra, 5)
    mine, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    output, expected = ours(mine, counts), run_packed(reference, theirs, counts)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)

    weights = torch.randn_like(expected)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    theirs_by_name = dict(reference.named_parameters())
    for half, suffix in ((ours.forward_lstm, ""), (ours.backward_lstm, "_reverse")):
        for name, parameter in half.named_parameters():
            torch.testing.assert_close(
                parameter.grad, theirs_by_name[name + suffix].grad, rtol=1e-4, atol=1e-5, msg=name
            )


def gradients(layer: BiLstm, states: Tensor, lengths: Tensor) -> list[Tensor]:
    """Output, and gradients of the input and of all weights for fixed weights of the outputs."""
    own = states.clone().requires_grad_()
    output = layer(own, lengths)
    towards = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output.dtype)
    return [output, *torch.autograd.grad(output, [own, *layer.parameters()], towards)]


def test_bilstm_learns_in_bf16_on_a_cpu_as_well_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    layer, lengths = BiLstm(24, bf16_lstm.MIN_SIZE), torch.tensor([9, 14, 3, 1])
    states = torch.randn(4, 16, 24)
    exact = gradients(layer, states, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        calls = []
        monkeypatch.setattr(bf16_lstm, "_gates_and_cells", spied(bf16_lstm._gates_and_cells, calls))
        ours = gradients(layer, states, lengths)
        assert len(calls) == 1
        monkeypatch.setattr(bilstm, "MIN_SIZE", math.inf)
        theirs = gradients(layer, states, lengths)
        assert len(calls) == 1
    padding = ~length_mask(lengths, 16)
    assert (ours[0][padding] == 0).all()
    assert (ours[1][padding] == 0).all()
    for true, found, by_torch in zip(exact, ours, theirs, strict=True):
        assert found.dtype == by_torch.dtype
        error, usual = ((one.float() - true).norm() / true.norm() for one in (found, by_torch))
        assert 0 < error < min(0.01, 1.3 * usual)


def spied(function: Callable[..., Any], calls: list[Any]) -> Callable[..., Any]:
    def spy(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    return spy


def test_reversed_order_by_hand() -> None:
    order = reversed_order(torch.tensor([4, 1, 3]), 4)
    assert order.tolist() == [[3, 2, 1, 0], [0, 1, 2, 3], [2, 1, 0, 3]]
    assert torch.equal(order.gather(1, order), torch.arange(4).expand(3, 4))


# ------------------------------------------------------------------ convolution, picked frames, dropout


def test_channels_last_convolution_is_torchs() -> None:
    torch.manual_seed(7)
    ours, reference = ChannelsLastConv2d(3, 4, (3, 5), (2, 1), padding=1), nn.Conv2d(3, 4, (3, 5), (2, 1), 1)
    reference.load_state_dict(ours.state_dict())
    states = torch.randn(2, 3, 9, 8)
    output, expected = ours(states), reference(states)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=torch.channels_last)
    for found, true in zip(
        torch.autograd.grad(output.square().sum(), list(ours.parameters())),
        torch.autograd.grad(expected.square().sum(), list(reference.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, true)


def test_picked_frames_have_the_gradient_of_index_select() -> None:
    frames = torch.randn(6, 3, requires_grad=True)
    positions, weights = torch.tensor([4, 0, 5]), torch.randn(3, 3)
    picked, expected = pick_frames(frames, positions), frames.index_select(0, positions)
    assert torch.equal(picked, expected)
    found = torch.autograd.grad((picked * weights).sum(), frames)[0]
    assert torch.equal(found, torch.autograd.grad((expected * weights).sum(), frames)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_scales_the_rest(dtype: torch.dtype) -> None:
    dropout = Dropout(0.2)
    states = torch.ones(101, 997, dtype=dtype, requires_grad=True)
    torch.manual_seed(8)
    output = dropout(states)
    assert output.dtype == dtype
    kept = output != 0
    # Binomial: five standard deviations.
    assert kept.float().mean().item() == pytest.approx(0.8, abs=5 * (0.16 / states.numel()) ** 0.5)
    for axis in (0, 1):
        share = kept.float().mean(dim=axis)
        assert (share - 0.8).abs().max() < 6 * (0.16 / kept.shape[axis]) ** 0.5
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1.25), rtol=0.01, atol=0)
    (gradient,) = torch.autograd.grad(output.sum(), states)
    assert torch.equal(gradient, output)
    torch.manual_seed(8)
    assert torch.equal(dropout(states), output)
    assert not torch.equal(dropout(states), output)
    assert torch.equal(dropout.eval()(states), states)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (1.0, 0.0)])
def test_dropout_of_nothing_and_of_everything(share: float, expected: float) -> None:
    assert (Dropout(share)(torch.ones(3, 5)) == expected).all()


# ------------------------------------------------------------------ masked batch norm


def test_masked_batch_norm_is_batch_norm_of_the_real_frames() -> None:
    torch.manual_seed(4)
    lengths = torch.tensor([5, 2, 8])
    mask = length_mask(lengths, 9)
    ours, reference = MaskedBatchNorm(6), nn.BatchNorm1d(6)
    for _ in range(3):
        states = 3 * torch.randn(3, 9, 6) + 2
        states[~mask] = 1e6  # must not enter the statistics
        output = ours(states, mask)
        torch.testing.assert_close(output[mask], reference(states[mask]))
        assert (output[~mask] == 0).all()
    torch.testing.assert_close(ours.running_mean, reference.running_mean)
    torch.testing.assert_close(ours.running_var, reference.running_var)
    assert ours.num_batches_tracked == 3

    evaluated, expected = ours.eval()(states, mask), reference.eval()(states[mask])
    torch.testing.assert_close(evaluated[mask], expected)
    assert (evaluated[~mask] == 0).all()


def test_masked_batch_norm_of_images_is_batch_norm_2d_where_nothing_is_padded() -> None:
    states = torch.randn(2, 7, 5, 3)  # (batch, frames, bins, channels)
    ours, reference = MaskedBatchNorm(3), nn.BatchNorm2d(3)
    output = ours(states, torch.ones(2, 7, dtype=torch.bool))
    torch.testing.assert_close(output.movedim(-1, 1), reference(states.movedim(-1, 1)))
    torch.testing.assert_close(ours.running_var, reference.running_var)


def test_masked_batch_norm_survives_a_single_frame() -> None:
    norm = with_statistics(MaskedBatchNorm(4))
    states = torch.randn(1, 3, 4)
    mask = torch.tensor([[True, False, False]])
    before = norm.running_mean.clone()  # type: ignore[union-attr,operator]
    found = norm.train()(states, mask)
    assert torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
    torch.testing.assert_close(found, norm.eval()(states, mask))


# ------------------------------------------------------------------ lengths


@given(
    num_samples=st.integers(1, 4000),
    time_strides=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    kernel=st.sampled_from([1, 3, 5, 11]),
)
@settings(deadline=None, max_examples=40)
def test_output_lengths_are_the_real_number_of_frames(
    num_samples: int, time_strides: list[int], kernel: int
) -> None:
    network = encoder(
        conv_channels=[2] * len(time_strides),
        conv_kernels=[[kernel, 3]] * len(time_strides),
        conv_strides=[[stride, 2] for stride in time_strides],
        rnn_size=2,
        rnn_layers=1,
    ).eval()
    model = AcousticModel(front_end(), network).eval()
    waveforms, lengths = waveform_batch([num_samples])
    found = model(waveforms, lengths)
    assert found.log_probs.shape == (1, int(found.log_prob_lengths), VOCAB_SIZE)
    assert torch.equal(found.log_prob_lengths, model.output_lengths(lengths))
    assert found.log_prob_lengths.dtype == torch.int64
    assert model.seconds_per_frame == pytest.approx(0.01 * torch.tensor(time_strides).prod().item())


@given(length=st.integers(1, 500), stride=st.integers(1, 5), half=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_strided_lengths_are_those_of_a_convolution(length: int, stride: int, half: int) -> None:
    convolution = nn.Conv1d(1, 1, 2 * half + 1, stride, padding=half)
    real = convolution(torch.zeros(1, 1, length)).shape[2]
    assert int(strided_lengths(torch.tensor([length]), stride)) == real == -(-length // stride)


# ------------------------------------------------------------------ padding

NORMS = ["batch", "layer", "none"]


@pytest.mark.parametrize("rnn_norm", NORMS)
def test_an_utterance_has_the_same_output_alone_and_in_any_batch(rnn_norm: str) -> None:
    model = with_statistics(AcousticModel(front_end(), encoder(rnn_norm=rnn_norm, dropout=0.3))).eval()
    lengths = [16000, 3000, 9999, 400]
    waveforms, counts = waveform_batch(lengths, extra=5000)
    with torch.no_grad():
        together = model(waveforms, counts)
        for index, length in enumerate(lengths):
            alone = model(waveforms[index : index + 1, :length], counts[index : index + 1])
            num_frames = int(alone.log_prob_lengths[0])
            assert int(together.log_prob_lengths[index]) == num_frames
            torch.testing.assert_close(
                together.log_probs[index, :num_frames], alone.log_probs[0], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("rnn_norm", NORMS)
def test_training_gradients_do_not_depend_on_the_padding(rnn_norm: str) -> None:
    gradients, statistics = [], []
    for extra in (0, 40):
        network = encoder(rnn_norm=rnn_norm).train()
        emissions = network(feature_batch([60, 25, 44], extra=extra))
        mask = length_mask(emissions.log_prob_lengths, emissions.log_probs.shape[1])
        emissions.log_probs[..., 3].masked_select(mask).sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        statistics.append(dict(network.named_buffers()))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)
    for name, buffer in statistics[0].items():
        torch.testing.assert_close(buffer, statistics[1][name], msg=name)


def test_an_output_frame_hears_the_whole_utterance() -> None:
    network = encoder(rnn_layers=1).eval()
    batch = feature_batch([80])
    frames = batch.features.clone().requires_grad_()
    network(Features(frames, batch.feature_lengths)).log_probs[0, 10, 0].backward()
    assert frames.grad is not None
    assert (frames.grad[0].abs().sum(dim=1) > 0).all()


# ------------------------------------------------------------------ what comes out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bilstm_never_computes_in_float16_on_a_gpu() -> None:
    """As autocast has it; in float16 these states are infinite."""
    lstm = BiLstm(8, 128).cuda()
    states = torch.full((2, 5, 8), 1e6, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        found = lstm(states, torch.tensor([5, 3], device="cuda"))
    assert found.dtype == torch.float32
    found.sum().backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("rnn_norm", NORMS)
def test_log_probs_are_normalised_float32_in_every_mode(
    training: bool, autocast: bool, rnn_norm: str
) -> None:
    model = AcousticModel(front_end(dither=1e-5), encoder(rnn_norm=rnn_norm, dropout=0.2)).train(training)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = model(*waveform_batch([8000, 5000])).log_probs
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(dim=2), torch.ones(2, found.shape[1]), rtol=0, atol=1e-5)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bf16_stays_close_to_float32() -> None:
    model = with_statistics(AcousticModel(front_end(), encoder())).eval()
    batch = waveform_batch([16000])
    with torch.no_grad():
        exact = model(*batch).log_probs
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(*batch).log_probs
    assert float((exact - rounded).abs().max()) < 0.1


def test_augment_sees_the_features_and_its_result_is_used() -> None:
    model = AcousticModel(front_end(), encoder()).eval()
    waveforms, lengths = waveform_batch([8000])
    seen: list[Features] = []

    def silence(batch: Features) -> Features:
        seen.append(batch)
        return Features(torch.zeros_like(batch.features), batch.feature_lengths)

    plain, masked = model(waveforms, lengths), model(waveforms, lengths, silence)
    torch.testing.assert_close(seen[0].features, model.features(waveforms, lengths).features)
    assert not torch.allclose(plain.log_probs, masked.log_probs)
    torch.testing.assert_close(masked.log_probs, model.encoder(silence(seen[0])).log_probs)


@pytest.mark.parametrize("rnn_norm", NORMS)
def test_dropout_is_only_for_training(rnn_norm: str) -> None:
    network, batch = encoder(rnn_norm=rnn_norm, dropout=0.5), feature_batch([50])
    network.eval()
    assert torch.equal(network(batch).log_probs, network(batch).log_probs)
    network.train()
    assert not torch.equal(network(batch).log_probs, network(batch).log_probs)


def test_the_tiniest_batch_can_be_trained_on() -> None:
    network = encoder().train()
    network(feature_batch([1])).log_probs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_weights_survive_a_state_dict() -> None:
    first, second = with_statistics(encoder()).eval(), encoder().eval()
    batch = feature_batch([30, 20])
    assert not torch.equal(first(batch).log_probs, second(batch).log_probs)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(batch).log_probs, second(batch).log_probs)


def test_an_encoder_that_lacks_a_method_says_which() -> None:
    with pytest.raises(TypeError, match="Encoder must implement forward"):
        Encoder()(feature_batch([3]))
    with pytest.raises(TypeError, match="Encoder must implement output_lengths"):
        Encoder().output_lengths(torch.tensor([3]))
