"""torchaudio's CUDA decoder behind our interface: without a GPU with a stand-in for its kernels, with one as it is."""

import math
import sys
from types import SimpleNamespace

import cuda_stand_in
import numpy as np
import pytest
import torch
from conftest import compose_config
from torch import Tensor

from asr import build
from asr.config import CudaConfig, EvaluateConfig
from asr.decode import cuda
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.cuda import CudaDecoder
from asr.decode.decoder import DecodeError
from asr.errors import ConfigError
from asr.records import Emissions
from asr.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer([" ", "a", "b"], blank_id=0)
CERTAIN = 1.0  # a threshold that skips frames whose blank is certain, where skipping changes nothing


def random_log_probs(seed: int, num_frames: int, vocab_size: int = 4) -> Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(3 * random.normal(size=(num_frames, vocab_size))).log_softmax(-1).float()


def as_batch(*utterances: Tensor) -> Emissions:
    padded = torch.nn.utils.rnn.pad_sequence(list(utterances), batch_first=True)
    return Emissions(padded, torch.tensor([len(utterance) for utterance in utterances]))


def decoder(kernels: cuda_stand_in.Kernels | None = None, **options: float) -> CudaDecoder:
    options = {"beam_width": 4, "blank_skip_threshold": CERTAIN} | options
    return CudaDecoder(TOKENIZER, 0.02, cuda_stand_in.make_search(TOKENIZER, kernels=kernels, **options))  # type: ignore[arg-type]


def ours(beam_width: int = 4) -> BeamDecoder:
    return BeamDecoder(TOKENIZER, 0.02, pruning=Pruning.none(beam_width))


def rows(*probabilities: list[float]) -> Tensor:
    """``(frames, vocab)`` for the tokens blank, space, a, b."""
    return torch.tensor(probabilities).log()


# ------------------------------------------------------------------ around the search


@pytest.mark.parametrize("beam_width", [1, 3, 4])
def test_texts_scores_and_times_are_those_of_the_same_search(beam_width: int) -> None:
    batch = as_batch(*(random_log_probs(seed, 5 + seed) for seed in range(6)))
    expected = ours(beam_width).decode(batch)
    found = decoder(beam_width=beam_width).decode(batch)
    assert [(one.text, one.token_ids, one.token_frames) for one in found] == [
        (one.text, one.token_ids, one.token_frames) for one in expected
    ]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    for one, other in zip(found, expected, strict=True):
        assert [(word.text, word.start_seconds, word.end_seconds) for word in one.words] == [
            (word.text, word.start_seconds, word.end_seconds) for word in other.words
        ]
    assert len({one.text for one in found}) > 3


def test_skipped_frames_count_as_blanks() -> None:
    log_probs = rows(
        [0.97, 0.01, 0.01, 0.01], [0.2, 0.1, 0.6, 0.1], [0.96, 0.01, 0.02, 0.01], [0.3, 0.1, 0.5, 0.1],
    )  # fmt: skip
    # Of the two frames that are read, "aa" has 0.6 * 0.5: the skipped one parts them. "a" has less.
    expected = math.log(0.97 * 0.96 * 0.6 * 0.5)
    (hypothesis,) = decoder(blank_skip_threshold=0.95).decode(as_batch(log_probs))
    assert (hypothesis.text, hypothesis.token_frames) == ("aa", (1, 3))
    assert hypothesis.score == pytest.approx(expected, abs=1e-5)
    assert ours().decode(as_batch(log_probs))[0].score > expected  # which adds up all alignments


def test_silence_and_nothing_at_all() -> None:
    silence = rows(*[[0.97, 0.01, 0.01, 0.01]] * 3)
    spoken = rows([0.1, 0.1, 0.7, 0.1])
    for batch in (as_batch(silence, spoken, silence[:0]), as_batch(silence, silence[:0])):
        kernels = cuda_stand_in.Kernels(TOKENIZER)
        found = decoder(kernels, blank_skip_threshold=0.95).decode(batch)
        texts = ["", "a", ""] if len(found) == 3 else ["", ""]
        assert [one.text for one in found] == texts
        assert found[0].score == pytest.approx(3 * math.log(0.97))
        assert (found[-1].score, found[-1].words) == (0.0, ())
        assert kernels.batch_sizes == ([1] if len(found) == 3 else [])
    assert decoder().decode(Emissions(torch.zeros(2, 0, 4), torch.zeros(2, dtype=torch.int64)))[1].text == ""


def test_impossible_tokens() -> None:
    log_probs = rows([0.0, 0.0, 1.0, 0.0], [0.5, 0.0, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0])
    (hypothesis,) = decoder().decode(as_batch(log_probs))
    assert (hypothesis.text, hypothesis.score) == ("ab", pytest.approx(0.0, abs=1e-5))
    assert hypothesis.words[0].confidence == pytest.approx(1.0)


def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = [random_log_probs(seed, 3 + seed % 4) for seed in range(7)]
    expected = [decoder().decode(as_batch(utterance))[0].text for utterance in utterances]
    for limits in (
        {"MAX_UTTERANCES": 3},
        {"MAX_CELLS": 3 * 4 * 6 * 4 + 95},
    ):  # utterances × beam × frames × tokens
        kernels = cuda_stand_in.Kernels(TOKENIZER)
        with monkeypatch.context() as patch:
            for name, limit in limits.items():
                patch.setattr(cuda, name, limit)
            assert [one.text for one in decoder(kernels).decode(as_batch(*utterances))] == expected
        assert kernels.batch_sizes == [3, 3, 1]
    monkeypatch.setattr(cuda, "MAX_CELLS", 4 * 6 * 4 - 1)
    with pytest.raises(DecodeError, match="utterance 3 of the batch: its 6 frames are too many"):
        decoder().decode(as_batch(*utterances))


def test_every_batch_has_a_decoder_of_its_own() -> None:
    """One belongs to a stream and a thread, and keeps memory."""
    search = cuda_stand_in.make_search(TOKENIZER, beam_width=4)
    made: list[object] = []
    counted = search._replace(make=lambda: made.append(search.make()) or made[-1])
    decoding = CudaDecoder(TOKENIZER, 0.02, counted)
    for seed in range(3):
        decoding.decode(as_batch(random_log_probs(seed, 5)))
    assert len({id(one) for one in made}) == 3


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(("value", "what"), [(torch.nan, "hold NaN"), (-torch.inf, "are all minus infinity")])
def test_damaged_log_probs(value: float, what: str) -> None:
    damaged = random_log_probs(0, 5)
    damaged[3] = value
    with pytest.raises(DecodeError, match=f"utterance 1 of the batch: .* frame 3 {what}"):
        decoder().decode(as_batch(random_log_probs(1, 5), damaged))


def test_log_probs_of_another_model() -> None:
    with pytest.raises(ConfigError, match="5 classes but the tokenizer has 4"):
        decoder().decode(as_batch(random_log_probs(0, 3, vocab_size=5)))


def refusal(tokenizer: CharTokenizer = TOKENIZER, **options: int) -> str:
    with pytest.raises(ConfigError) as caught:
        build.make_decoder(CudaConfig(**({"beam_width": 4} | options)), tokenizer, 0.02)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tokens_that_it_cannot_search() -> None:
    assert "no more candidates than there are tokens, 4" in refusal(beam_width=5)
    assert "here it is 3: use decoder=beam" in refusal(CharTokenizer([" ", "a", "b"], blank_id=3))


def test_no_gpu_or_no_such_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "needs an NVIDIA GPU, and none is usable here; use decoder=beam" in refusal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.ops, "torchaudio_prefixctc", object())
    assert "(its library is missing); use decoder=beam" in refusal()
    monkeypatch.setitem(sys.modules, "torchaudio.models.decoder", None)
    assert "needs a torchaudio that has the CUDA decoder" in refusal()


def test_a_gpu_on_which_its_kernels_crash(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a Hopper")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert "would crash on this GPU (a Hopper): torchaudio's search writes beyond" in refusal()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.ops, "torchaudio_prefixctc", SimpleNamespace(prefixCTC_alloc=None))
    build.make_decoder(CudaConfig(beam_width=4), TOKENIZER, 0.02)  # type: ignore[arg-type]
    assert "compare its results with those of decoder=beam" in caplog.text


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("decoder.beam_width=0", "beam_width=0 must be at least 1"),
        ("decoder.beam_width=129", "beam_width=129 must be at most 128"),
        ("decoder.blank_skip_threshold=0", "blank_skip_threshold=0.0 must be above 0"),
        ("decoder.blank_skip_threshold=1.5", "blank_skip_threshold=1.5 must be at most 1"),
    ],
)
def test_options_out_of_range(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config("evaluate", EvaluateConfig, ["checkpoint=a", "decoder=cuda", option])


# ------------------------------------------------------------------ on a GPU


def can_search() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() < cuda.CHECKS_SHARED_MEMORY


@pytest.mark.skipif(
    not can_search(), reason="needs a GPU of before Hopper: torchaudio's kernels crash on others"
)
@pytest.mark.parametrize("threshold", [CERTAIN, 0.95])
def test_on_a_gpu(threshold: float) -> None:
    """The real kernels find what the stand-in finds, also on a stream that is not the default one."""
    tokenizer = CharTokenizer(list(" abcdefghijklmnopqrstuvwxyz"), blank_id=0)
    vocab_size = tokenizer.vocab_size
    silence = torch.full((20, vocab_size), -9.0)
    silence[:, 0] = 0.0
    utterances = [random_log_probs(seed, 8 + 5 * seed, vocab_size) for seed in range(12)]
    utterances += [
        silence.log_softmax(-1),
        torch.cat([utterances[3], silence.log_softmax(-1), utterances[2]]),
    ]
    options = {"beam_width": 24, "blank_skip_threshold": threshold}
    real = CudaDecoder(tokenizer, 0.02, cuda.make_search(tokenizer, **options))  # type: ignore[arg-type]
    expected = CudaDecoder(tokenizer, 0.02, cuda_stand_in.make_search(tokenizer, **options)).decode(  # type: ignore[arg-type]
        as_batch(*utterances)
    )
    on_host = as_batch(*utterances)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        with torch.cuda.stream(stream):
            on_gpu = Emissions(on_host.log_probs.cuda(), on_host.log_prob_lengths.cuda())
            for batch in (on_host, on_gpu):
                found = real.decode(batch)
                assert [one.text for one in found] == [one.text for one in expected]
                assert [one.score for one in found] == pytest.approx(
                    [one.score for one in expected], rel=1e-4, abs=1e-3
                )
