"""Alignment and occupancy against brute force, torchaudio and torch's loss and gradients."""

import math

import numpy as np
import pytest
import torch
import torchaudio.functional as AF
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.ctc.align import (
    Alignment,
    AlignmentError,
    Infeasible,
    TokenSpan,
    forced_align,
    forced_align_batch,
    occupancy,
    word_spans,
)
from asr.ctc.paths import best_paths, collapse, enumerate_paths, min_num_frames, sum_paths


@st.composite
def cases(draw: st.DrawFn, max_frames: int = 7) -> tuple[np.ndarray, list[int], int]:
    """Feasible ``(log_probs, labels, blank)``; repeats are frequent because the vocabulary is small."""
    vocab_size = draw(st.integers(2, 4))
    blank = draw(st.integers(0, vocab_size - 1))
    tokens = [token for token in range(vocab_size) if token != blank]
    labels = draw(st.lists(st.sampled_from(tokens), max_size=4))
    num_frames = draw(st.integers(max(1, min_num_frames(labels)), max_frames))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.normal(size=(num_frames, vocab_size)) * draw(st.sampled_from([0.1, 1.0, 20.0]))
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True), labels, blank


@given(cases())
@settings(deadline=None, max_examples=150)
def test_alignment_is_the_best_of_all_paths(case: tuple[np.ndarray, list[int], int]) -> None:
    log_probs, labels, blank = case
    listed = enumerate_paths(log_probs, labels, blank)
    alignment = forced_align(log_probs, labels, blank=blank)
    assert alignment.log_prob == pytest.approx(max(one.log_prob for one in listed))
    assert collapse(alignment.path.tolist(), blank) == tuple(labels)
    assert tuple(alignment.path.tolist()) == best_paths(log_probs, labels, blank)[0].path
    spans = alignment.token_spans()
    assert [span.token_id for span in spans] == labels
    for span in spans:
        carried = log_probs[span.start_frame : span.end_frame, span.token_id]
        assert set(alignment.path[span.start_frame : span.end_frame]) == {span.token_id}
        assert span.score == pytest.approx(np.exp(carried).mean())


@given(cases())
@settings(deadline=None, max_examples=150)
def test_occupancy_is_the_posterior_over_all_paths(case: tuple[np.ndarray, list[int], int]) -> None:
    log_probs, labels, blank = case
    listed = enumerate_paths(log_probs, labels, blank)
    weights = np.exp([one.log_prob - sum_paths(listed) for one in listed])
    expected = np.zeros_like(log_probs)
    for weight, one in zip(weights, listed, strict=True):
        expected[np.arange(len(log_probs)), one.path] += weight
    result = occupancy(log_probs, labels, blank=blank)
    assert result.by_token(log_probs.shape[1]) == pytest.approx(expected, abs=1e-9)
    assert result.gamma.sum(axis=1) == pytest.approx(1.0)
    assert result.loss == pytest.approx(-sum_paths(listed), rel=1e-9, abs=1e-12)
    assert result.path_entropy == pytest.approx(-(weights * np.log(weights + 1e-300)).sum(), abs=1e-6)
    # alpha and beta meet in every frame with the same total.
    assert np.logaddexp.reduce(result.log_alpha + result.log_beta, axis=1) == pytest.approx(result.log_prob)


@given(cases())
@settings(deadline=None, max_examples=100)
def test_frame_losses_are_not_negative_and_sum_to_the_loss(case: tuple[np.ndarray, list[int], int]) -> None:
    log_probs, labels, blank = case
    result = occupancy(log_probs, labels, blank=blank)
    assert result.frame_losses.sum() == pytest.approx(result.loss, abs=1e-9)
    assert result.frame_losses.min() >= -1e-9
    # A first frame that must be one of two tokens costs the divergence of their posterior from the model.
    reached = [
        (token, share) for token, share in enumerate(result.by_token(log_probs.shape[1])[0]) if share > 0
    ]
    divergence = sum(share * (math.log(share) - log_probs[0, token]) for token, share in reached)
    assert result.frame_losses[0] == pytest.approx(divergence, abs=1e-8)


def random_batch(seed: int, batch: int = 6, frames: int = 40, vocab: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    log_probs = (3 * torch.randn(batch, frames, vocab, generator=generator)).log_softmax(-1)
    targets = torch.randint(1, vocab, (batch, 10), generator=generator)
    log_prob_lengths = torch.randint(25, frames + 1, (batch,), generator=generator)
    target_lengths = torch.randint(1, 11, (batch,), generator=generator)
    return log_probs, targets, log_prob_lengths, target_lengths


@pytest.mark.parametrize("seed", range(5))
def test_batch_agrees_with_torchaudio(seed: int) -> None:
    log_probs, targets, log_prob_lengths, target_lengths = random_batch(seed)
    results = forced_align_batch(log_probs, targets, log_prob_lengths, target_lengths, blank=0)
    repeats_seen = 0
    for index, result in enumerate(results):
        frames, tokens = int(log_prob_lengths[index]), int(target_lengths[index])
        path, scores = AF.forced_align(
            log_probs[index : index + 1, :frames], targets[index : index + 1, :tokens]
        )
        assert isinstance(result, Alignment)
        assert result.path.tolist() == path[0].tolist()
        assert result.frame_log_probs == pytest.approx(scores[0].numpy(), rel=1e-6)
        merged = AF.merge_tokens(path[0], scores[0].exp())
        for span, theirs in zip(result.token_spans(), merged, strict=True):
            place = (span.token_id, span.start_frame, span.end_frame)
            assert place == (theirs.token, theirs.start, theirs.end)
            assert span.score == pytest.approx(theirs.score, rel=1e-5)
        repeats_seen += min_num_frames(result.labels) - tokens
    assert repeats_seen > 0


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradients_agree_with_torch(seed: int) -> None:
    log_probs, targets, log_prob_lengths, target_lengths = random_batch(seed)
    for index in range(len(log_probs)):
        frames, tokens = int(log_prob_lengths[index]), int(target_lengths[index])
        logits = log_probs[index, :frames].double().requires_grad_()
        labels = targets[index, :tokens]
        loss = torch.nn.functional.ctc_loss(
            logits.log_softmax(-1), labels, (frames,), (tokens,), reduction="sum"
        )
        loss.backward()
        result = occupancy(logits.log_softmax(-1), labels.tolist(), blank=0)
        assert result.loss == pytest.approx(loss.item(), rel=1e-10)
        gradient = logits.detach().softmax(-1).numpy() - result.by_token(logits.shape[1])
        assert gradient == pytest.approx(logits.grad.numpy(), abs=1e-9)


def test_padding_and_input_kind_change_nothing() -> None:
    log_probs, targets, log_prob_lengths, target_lengths = random_batch(7)
    results = forced_align_batch(log_probs, targets, log_prob_lengths, target_lengths, blank=0)
    spoilt, spoilt_targets = log_probs.clone(), targets.clone()
    for index in range(len(log_probs)):
        spoilt[index, log_prob_lengths[index] :] = math.nan
        spoilt_targets[index, target_lengths[index] :] = 0
    again = forced_align_batch(
        spoilt.numpy(), spoilt_targets.tolist(), log_prob_lengths.tolist(), target_lengths.tolist(), blank=0
    )
    for one, other in zip(results, again, strict=True):
        assert isinstance(one, Alignment)
        assert isinstance(other, Alignment)
        assert one.path.tolist() == other.path.tolist()
    half = forced_align(log_probs[0].bfloat16(), targets[0, :3].tolist(), blank=0)
    assert collapse(half.path.tolist(), 0) == tuple(targets[0, :3].tolist())


def test_infeasible_utterances_are_named_and_the_others_aligned() -> None:
    log_probs = np.log(np.full((3, 4, 3), 1 / 3))
    log_probs[2, :, 2] = -np.inf
    targets = [[1, 1, 1], [1, 2, 0], [2, 0, 0]]
    short, fine, impossible = forced_align_batch(log_probs, targets, [4, 4, 4], [3, 2, 1], blank=0)
    assert isinstance(short, Infeasible)
    assert (short.index, short.num_frames, short.num_frames_needed) == (0, 4, 5)
    assert "3 labels with 2 adjacent repeats need at least 5 frames, but there are 4" in short.reason
    assert isinstance(fine, Alignment)
    assert isinstance(impossible, Infeasible)
    assert "4 of 4 frames (first: frame 0)" in impossible.reason
    with pytest.raises(AlignmentError, match="need at least 5 frames"):
        forced_align(log_probs[0], [1, 1, 1], blank=0)
    with pytest.raises(AlignmentError, match="need at least 5 frames"):
        occupancy(log_probs[0], [1, 1, 1], blank=0)
    with pytest.raises(AlignmentError, match="probability zero"):
        occupancy(log_probs[2], [2], blank=0)


def test_empty_labels_and_empty_input() -> None:
    log_probs = np.log([[0.75, 0.25], [0.5, 0.5]])
    assert forced_align(log_probs, [], blank=0).path.tolist() == [0, 0]
    assert occupancy(log_probs, [], blank=0).loss == pytest.approx(-math.log(0.375))
    nothing = np.zeros((0, 2))
    assert forced_align(nothing, [], blank=0).token_spans() == []
    assert occupancy(nothing, [], blank=0).loss == 0.0
    with pytest.raises(AlignmentError, match="need at least 1 frames, but there are 0"):
        forced_align(nothing, [1], blank=0)


def test_nonsense_is_refused_by_name() -> None:
    log_probs = np.zeros((1, 4, 3))
    with pytest.raises(ValueError, match="a label is 3, outside the vocabulary of 3"):
        forced_align(log_probs[0], [3], blank=0)
    with pytest.raises(ValueError, match="the blank is 5"):
        forced_align(log_probs[0], [1], blank=5)
    with pytest.raises(ValueError, match="label 0 is the blank"):
        forced_align(log_probs[0], [0], blank=0)
    with pytest.raises(ValueError, match="utterance 0: 9 frames"):
        forced_align_batch(log_probs, [[1]], [9], [1], blank=0)
    with pytest.raises(ValueError, match="batch size"):
        forced_align_batch(log_probs, [[1]], [4, 4], [1], blank=0)


def spans_of(ids: list[int]) -> list[TokenSpan]:
    """Two frames per token, one blank after each; scores 0.1, 0.2, …"""
    return [TokenSpan(token, i, 3 * i, 3 * i + 2, (i + 1) / 10) for i, token in enumerate(ids)]


def test_words_from_characters() -> None:
    vocabulary = ["<blank>", " ", "a", "b"]
    words = word_spans(spans_of([1, 2, 3, 1, 1, 3]), vocabulary=vocabulary)
    assert [word.text for word in words] == ["ab", "b"]
    assert [(word.start_frame, word.end_frame) for word in words] == [(3, 8), (15, 17)]
    assert [word.score for word in words] == pytest.approx([0.25, 0.6])
    by_id = word_spans(spans_of([1, 2, 3, 1, 1, 3]), boundary_id=1)
    assert [(word.text, word.start_frame, word.end_frame) for word in by_id] == [("", 3, 8), ("", 15, 17)]


@pytest.mark.parametrize("space", ["▁", " "])
def test_words_from_sentencepiece(space: str) -> None:
    vocabulary = ["<blank>", f"{space}the", f"{space}c", "at", space]
    words = word_spans(spans_of([1, 2, 3, 4, 3]), vocabulary=vocabulary)
    assert [word.text for word in words] == ["the", "cat", "at"]
    assert [len(word.tokens) for word in words] == [1, 2, 1]


def test_word_scores_weigh_frames() -> None:
    spans = [TokenSpan(2, 0, 0, 3, 0.9), TokenSpan(3, 1, 5, 6, 0.1)]
    [word] = word_spans(spans, boundary_id=1)
    assert word.score == pytest.approx((3 * 0.9 + 0.1) / 4)
    with pytest.raises(ValueError, match="give vocabulary or boundary_id"):
        word_spans(spans)
