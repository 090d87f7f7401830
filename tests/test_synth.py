"""The demo corpus and what it is made with: the espeak-ng binding and the sentence grammar."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import espeakng_loader
import numpy as np
import pytest
import soundfile

from asr.corpora import espeak
from asr.corpora.espeak import Voice, speak
from asr.corpora.grammar import GRAMMARS, Grammar, split_sentences, vocabulary
from asr.corpora.synth import SAMPLE_RATE, SPLITS, find_defect, is_complete, synthesise_corpus
from asr.errors import ConfigError, ManifestError, TextError
from asr.manifest import read_manifest
from asr.text import normalise

SMALL = {"num_utterances": 30, "num_speakers": 12, "seed": 5}


# --- espeak ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["", "m1", "f5", "croak"])  # plain, rough, breathy, fluttering
def test_same_words_same_samples_whatever_was_said_before(variant):
    voice = Voice("en-gb-scotland", variant)
    first = speak("call david at nine", voice)
    speak("another sentence entirely", Voice("en-us", "m2", words_per_minute=200))
    again = speak("call david at nine", voice)
    np.testing.assert_array_equal(first.waveform, again.waveform)
    assert first.words == again.words


def test_same_samples_in_another_process():
    code = (
        "from asr.corpora.espeak import Voice, speak; import hashlib\n"
        "speak('something first')\n"
        "print(hashlib.sha256(speak('open the window', Voice('en-029', 'f5')).waveform).hexdigest())"
    )
    root = Path(__file__).parents[1]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", body], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for body in (code, code.replace("speak('something first')\n", ""))
    }
    assert len(outputs) == 1


def test_voices_accents_rates_and_pitches_sound_different():
    voices = [
        Voice(),
        Voice("en-gb"),
        Voice("en-us", "f2"),
        Voice("en-us", "m3"),
        Voice(words_per_minute=200),
        Voice(pitch=60),
        Voice(pitch_range=20),
    ]
    sounds = {speak("seven o'clock in the garden", voice).waveform.tobytes() for voice in voices}
    assert len(sounds) == len(voices)
    slow, fast = (speak("open the window", Voice(words_per_minute=rate)) for rate in (120, 240))
    assert len(slow.waveform) > 1.4 * len(fast.waveform)


def test_pitch_is_what_was_asked_for():
    def fundamental_hz(pitch: int) -> float:
        speech = speak("eight", Voice("en-us", "", 100, pitch, 0))
        start = round((speech.words[0].start_seconds + 0.04) * speech.sample_rate)
        piece = speech.waveform[start : start + 1800]
        correlation = np.correlate(piece, piece, "full")[len(piece) - 1 :]
        shortest, longest = speech.sample_rate // 300, speech.sample_rate // 50
        return speech.sample_rate / (shortest + np.argmax(correlation[shortest:longest]))

    assert fundamental_hz(75) > 1.2 * fundamental_hz(25)


def hiss_onset_seconds(speech: espeak.Speech, near_seconds: float) -> float:
    """Where, within 60 ms of a time, most of the power comes to lie above 4 kHz: an s begins."""
    hop = speech.sample_rate // 500
    frames = np.lib.stride_tricks.sliding_window_view(speech.waveform, 4 * hop)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(4 * hop), axis=1)) ** 2
    hz = np.fft.rfftfreq(4 * hop, 1 / speech.sample_rate)
    hiss = power[:, hz > 4000].sum(1) / (power.sum(1) + 1e-9)
    first = round(near_seconds * 500) - 30
    window = hiss[first : first + 60]
    assert window.max() > 0.5
    return (first + int(np.argmax(window > 0.5)) + 2) * hop / speech.sample_rate


@pytest.mark.parametrize("voice", [Voice(), Voice("en-us", "m3"), Voice("en-us", "m1", 140)])
@pytest.mark.parametrize(
    ("text", "tolerance_seconds"),
    # espeak-ng makes a tiny pause before the s after a vowel or nasal; after an l its word event is early.
    [("zero seven", 0.016), ("nine seven", 0.016), ("call seven", 0.006), ("all six", 0.006)],
)
def test_word_times_agree_with_where_the_hiss_of_s_starts(text, tolerance_seconds, voice):
    speech = speak(text, voice)
    start_seconds = speech.words[-1].start_seconds
    assert hiss_onset_seconds(speech, start_seconds) == pytest.approx(start_seconds, abs=tolerance_seconds)


def test_word_times_are_ordered_and_cover_the_speech():
    # "in the" and "to be" are single words to espeak-ng's dictionary.
    text = "turn off the light in the kitchen to be sure and spell C A T now"
    speech = speak(text)
    assert [word.text for word in speech.words] == text.lower().split()
    for word in speech.words:
        assert 0.03 < word.end_seconds - word.start_seconds < 1.0
    for word, following in zip(speech.words, speech.words[1:], strict=False):
        assert word.end_seconds <= following.start_seconds
    assert speech.words[0].start_seconds < 0.06
    assert len(speech.waveform) / speech.sample_rate - speech.words[-1].end_seconds < 0.4


def test_capital_letters_are_spelled_and_the_article_is_not():
    letter = speak("take A dog").words[1]
    article = speak("take a dog").words[1]
    assert letter.text == article.text == "a"
    letter_seconds = letter.end_seconds - letter.start_seconds
    assert letter_seconds > 2 * (article.end_seconds - article.start_seconds)
    american, british = (speak("Z", Voice(accent)) for accent in ("en-us", "en-gb"))  # zee, zed
    assert len(american.waveform) != len(british.waveform)


def test_installation_in_a_very_deep_folder(tmp_path, monkeypatch):
    deep = tmp_path.joinpath(*["a-folder-with-a-rather-long-name"] * 6)
    deep.mkdir(parents=True)
    (deep / "espeak-ng-data").symlink_to(espeakng_loader.get_data_path())
    expected = speak("hello there")
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(deep / "espeak-ng-data"))
    espeak._data_path.cache_clear()
    try:
        np.testing.assert_array_equal(speak("hello there").waveform, expected.waveform)
    finally:
        espeak._data_path.cache_clear()


@pytest.mark.parametrize(
    ("make", "error", "named"),
    [
        (lambda: speak("  "), TextError, "empty"),
        (lambda: Voice("en-mars"), ConfigError, "en-mars"),
        (lambda: Voice(words_per_minute=20), ConfigError, "words_per_minute=20"),
        (lambda: speak("hello", Voice(variant="nobody")), ConfigError, "nobody"),
        (lambda: speak("hello ,"), TextError, "','"),
    ],
)
def test_impossible_requests_are_named(make, error, named):
    with pytest.raises(error, match=named):
        make()


# --- grammar -----------------------------------------------------------------------------------------


def test_grammar_has_a_useful_vocabulary_in_spoken_form():
    words = vocabulary()
    assert len(words) >= 250
    assert all(word == normalise(word) and not any(map(str.isdigit, word)) for word in words)
    assert set("abcdefghijklmnopqrstuvwxyz") <= words
    # Would sound like a letter, a digit or another word of the grammar.
    assert not words & {
        "be",
        "bee",
        "sea",
        "see",
        "are",
        "you",
        "why",
        "tea",
        "oh",
        "for",
        "too",
        "won",
        "ate",
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unseen_sentences_of_well_seen_words(seed):
    splits = split_sentences(1700, 150, 150, random.Random(seed))
    assert tuple(map(len, splits)) == (1700, 150, 150)
    everything = [sentence.lower() for split in splits for sentence in split]
    assert len(set(everything)) == 2000
    num_train = Counter(word for sentence in splits.train for word in set(sentence.split()))
    assert min(num_train[word] for sentence in splits.dev + splits.test for word in sentence.split()) >= 5
    assert {word.lower() for word in num_train} == vocabulary()
    assert split_sentences(1700, 150, 150, random.Random(seed)) == splits


def test_the_spelling_grammar_says_letters_numbers_dates_and_commands():
    words = vocabulary("spelling")
    assert len(words) <= 110
    assert set("abcdefghijklmnopqrstuvwxyz") | {"oh", "rubout", "thousand", "nineteen", "july"} <= words
    grammar = Grammar(random.Random(0), "spelling")
    said = [grammar.sentence() for _ in range(400)]
    assert {word for sentence in said for word in sentence.lower().split()} == words
    single = [all(len(word) == 1 and word.isupper() for word in sentence.split()) for sentence in said]
    assert 0.2 < sum(single) / len(single) < 0.4


def test_the_digits_grammar_says_three_to_eight_digits():
    assert vocabulary("digits") == {
        *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    }
    grammar = Grammar(random.Random(0), "digits")
    lengths = Counter(len(grammar.sentence().split()) for _ in range(600))
    assert lengths == dict.fromkeys(range(3, 9), 100)


def test_a_corpus_of_another_grammar_is_another_corpus(tmp_path):
    tiny = {"num_utterances": 6, "num_speakers": 3}
    synthesise_corpus(tmp_path / "demo", **tiny)
    assert "grammar=assistant, wanted is spelling" in find_defect(
        tmp_path / "demo", **tiny, grammar="spelling"
    )
    marker = json.loads((tmp_path / "demo" / "corpus.json").read_text())
    del marker["parameters"]["grammar"]  # as older versions wrote it
    (tmp_path / "demo" / "corpus.json").write_text(json.dumps(marker))
    assert is_complete(tmp_path / "demo", **tiny)
    spelled = synthesise_corpus(tmp_path / "demo", **tiny, grammar="spelling")
    assert spelled.was_built
    with pytest.raises(ConfigError, match="grammar=poetry is none of assistant, spelling, digits"):
        synthesise_corpus(tmp_path / "demo", **tiny, grammar="poetry")


def test_more_sentences_than_the_grammar_holds(monkeypatch):
    monkeypatch.setitem(GRAMMARS, "assistant", {"sentence": ("yes", "no")})
    with pytest.raises(ConfigError, match="num_utterances=3"):
        split_sentences(1, 1, 1, random.Random(0))


# --- corpus ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    output = tmp_path_factory.mktemp("synth") / "demo"
    return output, synthesise_corpus(output, **SMALL)


@pytest.fixture
def corpus(built, tmp_path):
    return Path(shutil.copytree(built[0], tmp_path / "demo"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifests_describe_the_recordings(built):
    output, summary = built
    assert is_complete(output, **SMALL)
    assert summary.was_built
    assert (summary.num_utterances, summary.num_speakers) == (30, 12)
    total_seconds = 0.0
    for split in SPLITS:
        utterances = read_manifest(output / f"{split}.jsonl", allow_empty_text=False)
        assert len(utterances) == summary.splits[split].num_utterances
        assert len({u.speaker for u in utterances}) == summary.splits[split].num_speakers
        for utterance in utterances:
            assert utterance.audio_path == output / "audio" / split / f"{utterance.id}.flac"
            waveform, sample_rate = soundfile.read(utterance.audio_path)
            assert sample_rate == SAMPLE_RATE
            assert waveform.ndim == 1
            assert len(waveform) / sample_rate == utterance.duration_seconds
            assert 0.7 < utterance.duration_seconds < 6.0
            assert utterance.text == normalise(utterance.text)
            total_seconds += utterance.duration_seconds
    assert summary.duration_seconds == pytest.approx(total_seconds)


def test_recordings_have_the_stated_level_noise_and_words(built):
    for utterance in read_manifest(built[0] / "train.jsonl"):
        waveform, rate = soundfile.read(utterance.audio_path)
        words = utterance.extra["words"]
        assert [word for word, _, _ in words] == utterance.text.split()
        assert 0.09 < words[0][1] < 0.37
        assert words[-1][2] < utterance.duration_seconds - 0.09
        assert 0.01 < np.abs(waveform).max() <= 0.96
        speech = waveform[round(words[0][1] * rate) : round(words[-1][2] * rate)]
        level_db = 10 * np.log10(np.mean(speech**2))
        assert level_db == pytest.approx(utterance.extra["level_db"], abs=3)
        # Noise before the speech starts: there, and the stated distance below it. Brown noise is
        # uneven over 100 ms, hence the wide margin.
        noise = waveform[: round(0.09 * rate)]
        snr_db = level_db - 10 * np.log10(np.mean(noise**2))
        assert snr_db == pytest.approx(utterance.extra["snr_db"], abs=12)


def test_splits_share_neither_speakers_nor_variants_nor_sentences(built):
    splits = {split: read_manifest(built[0] / f"{split}.jsonl") for split in SPLITS}
    for trait in (lambda u: u.speaker, lambda u: u.extra["variant"], lambda u: u.text):
        values = [{trait(u) for u in utterances} for utterances in splits.values()]
        assert len(set.union(*values)) == sum(map(len, values))


def test_same_seed_same_bytes_other_seed_other_bytes(built, tmp_path):
    synthesise_corpus(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(built[0])
    synthesise_corpus(tmp_path / "other", **{**SMALL, "seed": 6})
    assert contents(tmp_path / "other")["train.jsonl"] != contents(built[0])["train.jsonl"]


def test_complete_corpus_is_left_alone(corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    summary = synthesise_corpus(corpus, **SMALL)
    assert not summary.was_built
    assert summary.num_utterances == 30
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_one_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _flip_one_byte])
@pytest.mark.parametrize("victim", ["audio/train/synth-00003.flac", "dev.jsonl", "corpus.json"])
def test_damage_is_named_and_repaired(corpus, built, damage, victim):
    if damage is _flip_one_byte and victim == "corpus.json":
        (corpus / victim).write_text((corpus / victim).read_text().replace('"version": 1', '"version": 0'))
    else:
        damage(corpus / victim)
    assert not is_complete(corpus, **SMALL)
    assert victim in find_defect(corpus, **SMALL)
    assert synthesise_corpus(corpus, **SMALL).was_built
    assert contents(corpus) == contents(built[0])


def test_interrupted_build_is_not_a_corpus(tmp_path, built):
    def interrupt(done, total):
        assert total == 30
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise_corpus(tmp_path / "demo", progress=interrupt, **SMALL)
    assert "never finished" in find_defect(tmp_path / "demo", **SMALL)
    synthesise_corpus(tmp_path / "demo", **SMALL)
    assert contents(tmp_path / "demo") == contents(built[0])


def test_interrupted_rebuild_leaves_no_old_manifest_behind(corpus):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise_corpus(corpus, progress=interrupt, **{**SMALL, "seed": 6})
    assert not list(corpus.glob("*.json*"))


def test_other_parameters_replace_the_corpus_and_keep_foreign_files(corpus):
    foreign = corpus / "audio" / "train" / "mine.flac"
    foreign.write_bytes(b"precious")
    smaller = {**SMALL, "num_utterances": 20}
    assert "num_utterances" in find_defect(corpus, **smaller)
    synthesise_corpus(corpus, **smaller)
    assert foreign.read_bytes() == b"precious"
    assert len(list(corpus.rglob("synth-*.flac"))) == 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_speakers": 2}, "num_speakers=2"),
        ({"num_utterances": 11}, "num_utterances=11"),
        ({"seed": -1}, "seed=-1"),
        ({"num_speakers": 5000, "num_utterances": 5000}, "too few voices"),
    ],
)
def test_impossible_parameters_are_refused_before_anything_is_written(tmp_path, changes, named):
    with pytest.raises(ConfigError, match=named):
        synthesise_corpus(tmp_path / "demo", **{**SMALL, **changes})
    assert not (tmp_path / "demo").exists()


def test_unwritable_output_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ManifestError, match="choose another output folder"):
        synthesise_corpus(tmp_path / "file" / "demo", **SMALL)


def test_marker_is_plain_json(built):
    marker = json.loads((built[0] / "corpus.json").read_text())
    assert marker["parameters"] == {**SMALL, "grammar": "assistant"}
    assert set(marker["sha256"]) | {"corpus.json"} == {
        path.replace(os.sep, "/") for path in contents(built[0])
    }
