"""Formats of transcripts, read back by parsers that are as strict as the formats' definitions."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.records import Hypothesis, Word
from asr.report.subtitles import MAX_CUE_MS, MAX_LINE_CHARACTERS, MAX_LINES, MIN_CUE_MS, PAUSE_MS, make_cues
from asr.report.transcripts import FORMATS, LINE_FORMATS, Transcript, make_transcript

Cue = tuple[int, int, str]


def transcript_of(words: list[Word], duration: float = 60.0, path: str = "calls/a b.wav") -> Transcript:
    text = " ".join(word.text for word in words)
    return make_transcript(path, duration, Hypothesis((), text, -1.0, (), tuple(words)), "best.ckpt", {})


def speech(texts: list[str], seconds: float = 0.3, gap: float = 0.05, start: float = 0.0) -> list[Word]:
    step = seconds + gap
    return [Word(text, start + i * step, start + i * step + seconds, 0.9) for i, text in enumerate(texts)]


# --------------------------------------------------------------------------- strict readers


def clock(text: str, separator: str) -> int:
    match = re.fullmatch(rf"(\d\d+):([0-5]\d):([0-5]\d){re.escape(separator)}(\d\d\d)", text)
    assert match, text
    hours, minutes, seconds, milliseconds = map(int, match.groups())
    return ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds


def cue_of(timing: str, payload: list[str], separator: str) -> Cue:
    start, arrow, end = timing.split(" ")
    assert arrow == "-->"
    assert payload
    assert all(line.strip() for line in payload)
    assert clock(start, separator) < clock(end, separator)
    return clock(start, separator), clock(end, separator), "\n".join(payload)


def read_srt(content: str) -> list[Cue]:
    blocks = [block.split("\n") for block in content.split("\n\n") if block]
    assert content == "" or content.endswith("\n\n")
    assert [block[0] for block in blocks] == [str(number) for number in range(1, len(blocks) + 1)]
    return [cue_of(timing, payload, ",") for _, timing, *payload in blocks]


def read_vtt(content: str) -> list[Cue]:
    """Cue text by the tokenizer of the standard: a raw ``<`` opens a tag, ``&`` an entity."""
    header, *blocks = content.split("\n\n")
    assert header == "WEBVTT"
    cues = []
    for block in filter(None, blocks):
        timing, *payload = block.split("\n")
        start, end, text = cue_of(timing, payload, ".")
        assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", text), text
        for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
            text = text.replace(entity, character)
        cues.append((start, end, text))
    return cues


def read_textgrid(content: str) -> list[tuple[float, float, str]]:
    """Praat reads the free-standing numbers, strings and flags, in order, and ignores all else."""
    tokens = iter(re.findall(r'"(?:[^"]|"")*"|<\w+>|(?<=[ =])-?\d+(?:\.\d+)?(?=\n)', content))

    def number() -> float:
        return float(next(tokens))

    def string() -> str:
        return next(tokens)[1:-1].replace('""', '"')

    assert (string(), string()) == ("ooTextFile", "TextGrid")
    low, high = number(), number()
    assert (next(tokens), number()) == ("<exists>", 1)
    assert (string(), string()) == ("IntervalTier", "words")
    assert (number(), number()) == (low, high)
    intervals = [(number(), number(), string()) for _ in range(int(number()))]
    assert next(tokens, None) is None
    assert intervals[0][0] == low == 0
    assert intervals[-1][1] == high
    assert all(start < end for start, end, _ in intervals)
    assert all(before[1] == after[0] for before, after in pairwise(intervals))
    return intervals


def read_ctm(content: str) -> list[tuple[str, str, float, float, str, float]]:
    rows = []
    for line in content.splitlines():
        name, channel, start, duration, word, confidence = line.split(" ")
        assert float(duration) > 0
        assert 0 <= float(confidence) <= 1
        rows.append((name, channel, float(start), float(duration), word, float(confidence)))
    return rows


# --------------------------------------------------------------------------- contents


def test_ctm_by_hand() -> None:
    words = [Word("new", 0.5, 0.75, 0.5), Word("york", 0.75, 1.0, 1.0)]
    content = FORMATS["ctm"].render(transcript_of(words))
    assert content == "a_b A 0.500 0.250 new 0.5000\na_b A 0.750 0.250 york 1.0000\n"
    assert LINE_FORMATS["ctm"](transcript_of(words)).startswith("calls/a_b A 0.500 0.250 new")


def test_srt_and_vtt_by_hand() -> None:
    words = [*speech(["good", "morning"], start=1.0), Word("bye", 3661.5, 3663.25, 0.5)]
    transcript = transcript_of(words, duration=4000)
    assert FORMATS["srt"].render(transcript) == (
        "1\n00:00:01,000 --> 00:00:02,000\ngood morning\n\n2\n01:01:01,500 --> 01:01:03,250\nbye\n\n"
    )
    assert FORMATS["vtt"].render(transcript) == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\ngood morning\n\n01:01:01.500 --> 01:01:03.250\nbye\n\n"
    )


def test_textgrid_by_hand() -> None:
    words = [Word("a", 0.25, 0.5, 1.0), Word('"b"', 0.5, 0.75, 1.0)]
    content = FORMATS["textgrid"].render(transcript_of(words, duration=1.0))
    assert '"""b"""' in content
    assert read_textgrid(content) == [(0, 0.25, ""), (0.25, 0.5, "a"), (0.5, 0.75, '"b"'), (0.75, 1, "")]


def test_without_words_every_format_is_valid_and_empty() -> None:
    silent = transcript_of([], duration=3.0)
    assert FORMATS["text"].render(silent) == "\n"
    assert json.loads(FORMATS["json"].render(silent))["words"] == []
    assert FORMATS["ctm"].render(silent) == ""
    assert read_srt(FORMATS["srt"].render(silent)) == []
    assert read_vtt(FORMATS["vtt"].render(silent)) == []
    assert read_textgrid(FORMATS["textgrid"].render(silent)) == [(0, 3, "")]


def test_cues_end_in_pauses() -> None:
    before, after = speech(["one", "two"]), speech(["three"], start=0.65 + PAUSE_MS / 1000)
    assert [cue.lines for cue in make_cues([*before, *after])] == [("one two",), ("three",)]


def test_a_short_cue_stays_readable_but_never_into_the_next() -> None:
    words = [Word("yes", 1.0, 1.1, 1.0), Word("no", 2.5, 2.6, 1.0), Word("so", 3.45, 3.5, 1.0)]
    assert [(cue.start_ms, cue.end_ms) for cue in make_cues(words)] == [
        (1000, 1000 + MIN_CUE_MS),
        (2500, 3450),
        (3450, 3450 + MIN_CUE_MS),
    ]


def test_long_speech_is_cut_at_its_longest_gap_near_the_middle() -> None:
    words = speech(["words"] * 20)
    words[11:] = speech(["words"] * 9, start=words[10].end_seconds + 0.3)
    cues = make_cues(words)
    assert cues[0].end_ms == round(1000 * words[10].end_seconds)
    assert [" ".join(cue.lines) for cue in cues] == [" ".join(["words"] * 11), " ".join(["words"] * 9)]


texts = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12
).filter(lambda text: not re.search(r"\s", text))
lengths = st.floats(0.0, 3.0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(texts | st.sampled_from(['<i>"', "-->", "&lt;", "{\\an8}", '"']), lengths, lengths))
)
def test_any_words_come_back_in_time_and_in_order(parts: list[tuple[str, float, float]]) -> None:
    """Whatever the text, however short the words: no cue breaks a file, no word is lost."""
    words, time = [], 0.0
    for text, gap, length in parts:
        words.append(Word(text, time + gap, time + gap + length, 0.5))
        time += gap + length
    transcript = transcript_of(words, duration=time + 0.01)
    spoken = [word.text for word in words]

    intervals = read_textgrid(FORMATS["textgrid"].render(transcript))
    assert [text for _, _, text in intervals if text] == spoken

    for read, name in ((read_srt, "srt"), (read_vtt, "vtt")):
        cues = read(FORMATS[name].render(transcript))
        assert all(before[1] <= after[0] for before, after in pairwise(cues))
        heard = [word for *_, text in cues for word in text.split()]
        if name == "vtt":
            assert heard == spoken
        assert len(heard) == len(spoken)
        assert not any(re.search("[<>{}]", text) for *_, text in cues) or name == "vtt"
    for cue in make_cues(words):
        assert len(cue.lines) <= MAX_LINES
        if len(" ".join(cue.lines).split()) > 1:
            assert max(map(len, cue.lines)) <= MAX_LINE_CHARACTERS
            assert cue.end_ms - cue.start_ms <= MAX_CUE_MS


@settings(max_examples=50, deadline=None)
@given(st.lists(texts, min_size=1))
def test_ctm_has_six_fields_whatever_the_words(spoken: list[str]) -> None:
    rows = read_ctm(FORMATS["ctm"].render(transcript_of(speech(spoken), duration=10_000)))
    assert [row[4] for row in rows] == [re.sub("[(){}<>;]", "_", text) for text in spoken]
    assert all(before[2] + before[3] <= after[2] + 1e-9 for before, after in pairwise(rows))


def test_an_hour_without_a_pause() -> None:
    cues = make_cues(speech(["hello"] * 10_000))
    assert sum(len(" ".join(cue.lines).split()) for cue in cues) == 10_000


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_ends_its_last_line(name: str) -> None:
    assert FORMATS[name].render(transcript_of(speech(["a"]))).endswith("\n")
