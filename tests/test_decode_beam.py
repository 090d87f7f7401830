"""Prefix beam search against the definition: every path of every labelling, summed."""

import itertools
import math
import threading
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asr.ctc.align import forced_align
from asr.decode.beam import BeamDecoder, Pruning
from asr.decode.confidence import Rival, word_shares
from asr.decode.decoder import DecodeError
from asr.decode.greedy import GreedyDecoder
from asr.decode.token_times import token_times
from asr.errors import ConfigError
from asr.records import Emissions, Hypothesis
from asr.tokenizer import CharTokenizer

FIRST_BLANK = CharTokenizer([" ", "a", "b"], blank_id=0)
LAST_BLANK = CharTokenizer([" ", "a", "b"], blank_id=3)
EVERYTHING = Pruning.none(5000)


def random_log_probs(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(scale * rng.normal(size=shape)).log_softmax(-1).float()


def by_definition(log_probs: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Log-probability of every labelling of ``(frames, vocab)``, summed over all its paths."""
    num_frames, vocab_size = log_probs.shape
    sums: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(vocab_size), repeat=num_frames):
        labelling = tuple(label for label, _ in itertools.groupby(path) if label != blank)
        sums[labelling] += math.exp(sum(float(log_probs[frame, label]) for frame, label in enumerate(path)))
    return {labelling: math.log(total) for labelling, total in sums.items() if total > 0}


def decode_one(
    log_probs: Tensor, pruning: Pruning, num_best: int = 1, tokenizer: CharTokenizer = FIRST_BLANK
) -> list[Hypothesis]:
    decoder = BeamDecoder(tokenizer, 1.0, pruning=pruning, num_threads=1)
    return decoder.decode_nbest(Emissions(log_probs[None], torch.tensor([len(log_probs)])), num_best)[0]


# ------------------------------------------------------------------ exactness


@given(
    seed=st.integers(0, 2**32 - 1),
    num_frames=st.integers(0, 5),
    scale=st.sampled_from([0.0, 1.0, 5.0, 40.0]),
    last=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_unpruned_it_finds_every_labelling_with_its_probability(
    seed: int, num_frames: int, scale: float, last: bool
) -> None:
    tokenizer = LAST_BLANK if last else FIRST_BLANK
    log_probs = random_log_probs(seed, num_frames, 4, scale=scale)
    expected = by_definition(log_probs, tokenizer.blank_id)
    found = decode_one(log_probs, EVERYTHING, 5000, tokenizer)
    assert {hypothesis.token_ids for hypothesis in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.token_ids], abs=1e-5, rel=1e-5)
    scores = [hypothesis.score for hypothesis in found]
    assert scores == sorted(scores, reverse=True)


def test_long_inputs_agree_with_the_loss_of_torch() -> None:
    log_probs = random_log_probs(3, 80, 4, scale=4.0)
    for hypothesis in decode_one(log_probs, Pruning.none(300), 20):
        loss = torch.nn.functional.ctc_loss(
            log_probs[:, None].double(),
            torch.tensor([hypothesis.token_ids]),
            torch.tensor([80]),
            torch.tensor([len(hypothesis.token_ids)]),
        ) * len(hypothesis.token_ids)
        # What the beam dropped on the way is missing from the sum, and it is little.
        assert -loss.item() - 0.3 < hypothesis.score < -loss.item() + 1e-4


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 8))
@settings(deadline=None, max_examples=60)
def test_a_beam_is_the_search_it_describes(seed: int, width: int) -> None:
    """Against the same search written with dictionaries, one path at a time."""
    log_probs = random_log_probs(seed, 12, 4, scale=3.0)
    pruning = Pruning(width, score_gap=6.0, token_gap=4.0, max_tokens=2)
    expected = reference_search(log_probs.double().numpy(), pruning, blank=0)
    found = decode_one(log_probs, pruning, width)
    assert [hypothesis.token_ids for hypothesis in found] == [labelling for labelling, _ in expected]
    assert [hypothesis.score for hypothesis in found] == pytest.approx(
        [score for _, score in expected], abs=1e-4
    )


def reference_search(
    log_probs: np.ndarray, pruning: Pruning, blank: int
) -> list[tuple[tuple[int, ...], float]]:
    beam: dict[tuple[int, ...], list[float]] = {(): [1.0, 0.0]}
    for row in log_probs:
        others = [token for token in range(len(row)) if token != blank and row[token] >= row.max() - 4.0]
        tokens = sorted(others, key=lambda token: -row[token])[: pruning.max_tokens]
        after: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for prefix, (in_blank, in_token) in beam.items():
            after[prefix][0] += (in_blank + in_token) * math.exp(row[blank])
            for token in tokens:
                if prefix and token == prefix[-1]:
                    after[prefix][1] += in_token * math.exp(row[token])
                    after[(*prefix, token)][1] += in_blank * math.exp(row[token])
                else:
                    after[(*prefix, token)][1] += (in_blank + in_token) * math.exp(row[token])
        best = max(map(sum, after.values()))
        near = {prefix: masses for prefix, masses in after.items() if sum(masses) >= best * math.exp(-6.0)}
        beam = dict(sorted(near.items(), key=lambda item: -sum(item[1]))[: pruning.beam_width])
    return [(prefix, math.log(sum(masses))) for prefix, masses in beam.items()]


def test_equal_prefixes_never_push_out_better_ones() -> None:
    # One token clearly best, the others all the same: with ties at the edge the best one stays.
    for num_tied in (3, 30, 600):
        logits = torch.zeros(3, num_tied + 2)
        logits[:, -1] = 1.0
        tokenizer = CharTokenizer([chr(0x4E00 + index) for index in range(num_tied + 1)], blank_id=0)
        best = decode_one(logits.log_softmax(-1), Pruning.none(2), 1, tokenizer)[0]
        assert set(best.token_ids) == {num_tied + 1}


def test_a_wide_beam_beats_the_best_path() -> None:
    # Two alignments of "a" at 0.24 and 0.24 and 0.16 against the single best path of blanks, 0.36.
    log_probs = torch.tensor([[0.6, 1e-9, 0.4, 1e-9], [0.6, 1e-9, 0.4, 1e-9]]).log()
    emissions = Emissions(log_probs[None], torch.tensor([2]))
    assert GreedyDecoder(FIRST_BLANK, 1.0).decode(emissions)[0].text == ""
    best = BeamDecoder(FIRST_BLANK, 1.0).decode(emissions)[0]
    assert best.text == "a"
    assert best.score == pytest.approx(math.log(0.64), abs=1e-6)


# ------------------------------------------------------------------ pruning


def test_max_tokens_keeps_the_likeliest_and_of_equals_the_first() -> None:
    log_probs = torch.tensor([[0.1, 0.3, 0.3, 0.3]]).log()
    found = decode_one(log_probs, Pruning(10, math.inf, math.inf, max_tokens=2), 10)
    assert {hypothesis.token_ids for hypothesis in found} == {(), (1,), (2,)}


def test_token_gap_counts_from_the_likeliest_token() -> None:
    log_probs = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
    found = decode_one(log_probs, Pruning(10, math.inf, token_gap=2.0), 10)
    assert {hypothesis.token_ids for hypothesis in found} == {(), (1,), (2,)}


def test_score_gap_counts_from_the_best_prefix() -> None:
    log_probs = torch.tensor([[0.0, -1.0, -2.0, -3.0]])
    found = decode_one(log_probs, Pruning(10, score_gap=1.5, token_gap=math.inf), 10)
    assert {hypothesis.token_ids for hypothesis in found} == {(), (1,)}


@pytest.mark.parametrize("option", ["beam_width", "score_gap", "token_gap", "max_tokens"])
def test_pruning_everything_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"decoder.{option}=0"):
        Pruning(**{option: 0})


# ------------------------------------------------------------------ batches


def test_batches_and_padding_change_nothing() -> None:
    log_probs = random_log_probs(1, 6, 20, 4)
    lengths = torch.tensor([20, 7, 0, 1, 13, 20])
    for index, length in enumerate(lengths):
        log_probs[index, length:] = math.nan
    decoder = BeamDecoder(FIRST_BLANK, 0.04, num_threads=3)
    together = decoder.decode_nbest(Emissions(log_probs, lengths), 3)
    alone = [
        decode_one(frames[:length], Pruning(), 3) for frames, length in zip(log_probs, lengths, strict=True)
    ]
    assert [[h.token_ids for h in nbest] for nbest in together] == [
        [h.token_ids for h in nbest] for nbest in alone
    ]
    assert [h.score for h in together[2]] == [0.0]
    assert together[2][0].text == ""
    assert together[2][0].words == ()


def test_it_is_deterministic_from_several_threads() -> None:
    emissions = Emissions(random_log_probs(5, 8, 40, 4), torch.full((8,), 40))
    decoder = BeamDecoder(FIRST_BLANK, 0.04, num_threads=2)
    expected = decoder.decode(emissions)
    results: list[list[Hypothesis]] = []
    threads = [threading.Thread(target=lambda: results.append(decoder.decode(emissions))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 3


# ------------------------------------------------------------------ times


@given(seed=st.integers(0, 2**32 - 1), num_frames=st.integers(1, 25))
@settings(deadline=None, max_examples=60)
def test_token_times_are_those_of_forced_alignment(seed: int, num_frames: int) -> None:
    log_probs = random_log_probs(seed, num_frames, 4)
    for hypothesis in decode_one(log_probs, Pruning(20), 3):
        spans = forced_align(log_probs, hypothesis.token_ids, blank=0).token_spans()
        times = token_times(log_probs.numpy(), hypothesis.token_ids, blank=0)
        assert times.starts.tolist() == [span.start_frame for span in spans]
        assert times.ends.tolist() == [span.end_frame - 1 for span in spans]
        assert hypothesis.token_frames == tuple(times.starts)
        peaks = [
            float(log_probs[span.start_frame : span.end_frame, span.token_id].max().exp()) for span in spans
        ]
        assert times.peaks == pytest.approx(peaks, rel=1e-5)


def test_where_both_find_the_best_path_words_equal_the_greedy_ones() -> None:
    rng = np.random.default_rng(0)
    path = np.repeat([0, 2, 0, 3, 0, 1, 2, 0, 2, 0], rng.integers(1, 4, size=10))
    log_probs = torch.full((1, len(path), 4), math.log(0.01))
    log_probs[0, torch.arange(len(path)), torch.from_numpy(path)] = math.log(0.97)
    emissions = Emissions(log_probs, torch.tensor([len(path)]))
    greedy = GreedyDecoder(FIRST_BLANK, 0.04).decode(emissions)[0]
    beam = BeamDecoder(FIRST_BLANK, 0.04).decode(emissions)[0]
    assert beam.text == greedy.text == "ab aa"
    assert beam.token_frames == greedy.token_frames
    for ours, theirs in zip(beam.words, greedy.words, strict=True):
        assert (ours.text, ours.start_seconds, ours.end_seconds) == (
            theirs.text,
            theirs.start_seconds,
            theirs.end_seconds,
        )
        assert 0.1 * theirs.confidence < ours.confidence < 1


# ------------------------------------------------------------------ confidence


def test_shares_of_rivals_by_hand() -> None:
    """Posteriors 0.6, 0.3 and 0.1: the second has another word, the third lacks one and has two more."""
    rivals = [
        Rival(["the", "cat", "sat"], math.log(0.6)),
        Rival(["the", "hat", "sat"], math.log(0.3)),
        Rival(["a", "cat", "sat", "down"], math.log(0.1)),
    ]
    assert word_shares(["the", "cat", "sat"], rivals) == pytest.approx([0.9, 0.7, 1.0])
    assert word_shares([], rivals) == []


@pytest.mark.parametrize("seed", range(8))
def test_a_words_confidence_is_the_posterior_of_the_texts_that_have_it(seed: int) -> None:
    """Two frames have ten labellings, so the list of rivals holds them all."""
    log_probs = random_log_probs(seed, 2, 4)
    posterior = {
        labels: math.exp(score) for labels, score in by_definition(log_probs, FIRST_BLANK.blank_id).items()
    }
    assert sum(posterior.values()) == pytest.approx(1, abs=1e-6)
    hypothesis = decode_one(log_probs, EVERYTHING)[0]
    times = token_times(log_probs.numpy(), hypothesis.token_ids, FIRST_BLANK.blank_id)
    for word, group in zip(hypothesis.words, FIRST_BLANK.word_groups(hypothesis.token_ids), strict=True):
        share = sum(p for labels, p in posterior.items() if word.text in FIRST_BLANK.decode(labels).split())
        acoustic = math.prod(times.peaks[group.first : group.last + 1])
        assert word.confidence == pytest.approx(0.9 * share + 0.1 * acoustic, abs=1e-5)


def test_a_long_recording_has_rivals_all_along() -> None:
    """20 doubtful letters have a million texts; 20 rivals of the whole would leave most letters undisputed."""
    log_probs = torch.full((800, 4), 1e-4)
    log_probs[:, 0] = 1.0
    for letter in range(20):
        frame = 5 + 40 * letter
        log_probs[frame] = torch.tensor([1e-4, 1e-4, 0.55, 0.45])
        log_probs[frame + 20] = torch.tensor([1e-4, 1.0, 1e-4, 1e-4])
    log_probs = (log_probs / log_probs.sum(dim=1, keepdim=True)).log()[None]
    short = BeamDecoder(FIRST_BLANK, 0.04).decode(Emissions(log_probs[:, :40], torch.tensor([40])))[0]
    assert short.words[0].confidence == pytest.approx(0.55, abs=0.05)
    long = BeamDecoder(FIRST_BLANK, 0.04).decode(Emissions(log_probs, torch.tensor([800])))[0]
    assert [word.text for word in long.words] == ["a"] * 20
    assert [word.confidence for word in long.words] == pytest.approx([0.55] * 20, abs=0.05)


# ------------------------------------------------------------------ bad input


def test_greedy_finds_the_same_alone_and_in_a_batch() -> None:
    """A batch takes the compiled pass, a single utterance does not."""
    emissions = Emissions(random_log_probs(7, 5, 30, 4), torch.tensor([30, 0, 1, 17, 30]))
    decoder = GreedyDecoder(FIRST_BLANK, 0.04)
    alone = [
        decoder.decode(Emissions(frames[None], length[None]))[0]
        for frames, length in zip(emissions.log_probs, emissions.log_prob_lengths, strict=True)
    ]
    for ours, theirs in zip(decoder.decode(emissions), alone, strict=True):
        assert (ours.token_ids, ours.token_frames) == (theirs.token_ids, theirs.token_frames)
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)
        assert [word.text for word in ours.words] == [word.text for word in theirs.words]
        for word, other in zip(ours.words, theirs.words, strict=True):
            assert (word.start_seconds, word.end_seconds) == (other.start_seconds, other.end_seconds)
            assert word.confidence == pytest.approx(other.confidence, rel=1e-5)


@pytest.mark.parametrize("make", [BeamDecoder, GreedyDecoder])
def test_nan_is_named_with_its_utterance_and_frame(make: type) -> None:
    log_probs = random_log_probs(0, 2, 6, 4)
    log_probs[1, 4, 2] = math.nan
    with pytest.raises(DecodeError, match=r"utterance 1 .* frame 4 hold NaN") as caught:
        make(FIRST_BLANK, 1.0).decode(Emissions(log_probs, torch.tensor([6, 6])))
    assert "\n" not in str(caught.value)


def test_a_frame_without_any_possible_token_is_named() -> None:
    log_probs = random_log_probs(0, 1, 6, 4)
    log_probs[0, 2] = -math.inf
    with pytest.raises(DecodeError, match="frame 2 are all minus infinity"):
        BeamDecoder(FIRST_BLANK, 1.0).decode(Emissions(log_probs, torch.tensor([6])))


def test_impossible_tokens_are_no_harm() -> None:
    log_probs = torch.full((1, 3, 4), -math.inf)
    log_probs[0, 0, 2] = log_probs[0, 1, 0] = log_probs[0, 2, 2] = 0.0
    nbest = BeamDecoder(FIRST_BLANK, 1.0, pruning=EVERYTHING).decode_nbest(
        Emissions(log_probs, torch.tensor([3])), 10
    )[0]
    assert [(h.token_ids, h.score) for h in nbest] == [((2, 2), 0.0)]


def test_another_vocabulary_than_the_tokenizers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"emits 7 classes but the tokenizer has 4"):
        BeamDecoder(FIRST_BLANK, 1.0).decode(Emissions(random_log_probs(0, 1, 3, 7), torch.tensor([3])))
