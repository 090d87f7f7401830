"""``tuned_decoder.yaml``: the decoder settings that ``asr.tune`` chose, what they were chosen with and on.

``asr.evaluate`` and ``asr.transcribe`` take it by ``tuned=PATH`` and refuse it where tokenizer, language
model, lexicon or hotwords are not those of the search.
"""

import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asr.config import DecoderConfig, from_plain_kind
from asr.errors import ConfigError
from asr.firewall import Choice
from asr.manifest import manifest_sha256 as file_sha256
from asr.report.schema import SchemaError, from_json, to_json

log = logging.getLogger(__name__)

FORMAT = 1
FILE_NAME = "tuned_decoder.yaml"
FILE_OPTIONS = ("lm", "lexicon", "hotword_file")
"""Decoder options that name files; these may move, but not change."""
WEIGHT_OPTIONS = ("alpha", "beta", "unknown_penalty", "hotword_weight")
_FREE = (*FILE_OPTIONS, "num_threads")
_HEADER = """\
# Decoder settings chosen by asr.tune. Use them with: python -m asr.evaluate checkpoint=... tuned=THIS_FILE
"""


@dataclass(frozen=True, slots=True)
class FileIdentity:
    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TunedDecoder:
    """The content of the file.

    - ``decoder``: every option of the decoder; ``results``: what the search found, for people
    - ``tokenizer``: its fingerprint; ``files``: by option, see ``FILE_OPTIONS``
    - ``chosen_on``: the dev set
    """

    format: int
    decoder: Mapping[str, Any]
    results: Mapping[str, Any]
    date: str
    environment: Mapping[str, Any]
    checkpoint: FileIdentity
    tokenizer: str
    files: Mapping[str, FileIdentity]
    chosen_on: Choice


def write(tuned: TunedDecoder, path: Path) -> None:
    """Write in one step.

    Raises:
        ConfigError: the file cannot be written.
    """
    content = to_json(tuned)
    content["chosen_on"]["keys"] = " ".join(tuned.chosen_on.keys)
    text = _HEADER + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def read(path: Path) -> TunedDecoder:
    """Read and check the file's form.

    Raises:
        ConfigError: missing, damaged or of another version.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"tuned={path}: cannot be read ({error.strerror}); asr.tune makes it") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"tuned={path}: not a file that asr.tune wrote ({reason})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"tuned={path}: not a file that this version's asr.tune wrote (format {found}, not {FORMAT}); tune again"
        )
    try:
        content["chosen_on"]["keys"] = content["chosen_on"]["keys"].split()
        return from_json(TunedDecoder, content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"tuned={path}: damaged, chosen_on is not what asr.tune wrote; tune again"
        ) from error
    except SchemaError as error:
        raise ConfigError(f"tuned={path}: {error}") from error


def decoder_files(decoder: DecoderConfig) -> dict[str, FileIdentity]:
    """The files that a decoder reads, by option.

    Raises:
        ConfigError: one is missing.
    """
    files = {}
    for option in FILE_OPTIONS:
        name = getattr(decoder, option, None)
        if name is not None:
            if not Path(name).is_file():
                raise ConfigError(f"decoder.{option}={name}: no such file")
            files[option] = FileIdentity(str(name), file_sha256(name))
    return files


@dataclass(frozen=True, slots=True)
class ResolvedDecoder:
    """The settings to decode with, what a report says of them, and what chose them (None: nobody knows)."""

    decoder: DecoderConfig
    description: Mapping[str, Any]
    chosen_on: Choice | None


def resolve(
    tuned_path: str | None,
    decoder: DecoderConfig,
    given: Collection[str],
    *,
    checkpoint: FileIdentity,
    tokenizer: str,
) -> ResolvedDecoder:
    """The decoder that is meant: as composed, or as tuned, checked to fit.

    Raises:
        ConfigError: see :func:`read`, :func:`apply` and :func:`check`.
    """
    if tuned_path is None:
        return ResolvedDecoder(decoder, describe(decoder, decoder_files(decoder)), None)
    tuned = read(Path(tuned_path))
    decoder = apply(tuned, tuned_path, decoder, given)
    files = decoder_files(decoder)
    check(tuned, tuned_path, checkpoint=checkpoint, tokenizer=tokenizer, files=files)
    return ResolvedDecoder(decoder, describe(decoder, files, tuned, tuned_path), tuned.chosen_on)


def apply(tuned: TunedDecoder, path: str, decoder: DecoderConfig, given: Collection[str]) -> DecoderConfig:
    """The tuned settings; files and threads are the user's where given.

    Args:
        decoder: the settings as composed.
        given: options named on the command line, such as ``decoder`` and ``decoder.lm``.

    Raises:
        ConfigError: an option that was given says otherwise.
    """
    settings = dict(tuned.decoder)
    composed = dataclasses.asdict(decoder)
    if "decoder" in given and composed["kind"] != settings.get("kind"):
        raise ConfigError(
            f"decoder={composed['kind']} contradicts tuned={path}, which is for decoder={settings.get('kind')}: "
            "leave one of them out"
        )
    for name in sorted(given):
        group, _, option = name.partition(".")
        if group != "decoder" or not option:
            continue
        if option in _FREE:
            settings[option] = composed[option]
        elif composed[option] != settings.get(option):
            raise ConfigError(
                f"{name}={composed[option]} contradicts tuned={path}, which says {settings.get(option)}: "
                "leave one of them out"
            )
    return from_plain_kind("decoder", settings, f"tuned={path}")  # type: ignore[no-any-return]


def check(
    tuned: TunedDecoder,
    path: str,
    *,
    checkpoint: FileIdentity,
    tokenizer: str,
    files: Mapping[str, FileIdentity],
) -> None:
    """Refuse what the settings were not made for; warn of another checkpoint.

    Raises:
        ConfigError: another tokenizer, language model, lexicon or hotword file; names both.
    """
    if tokenizer != tuned.tokenizer:
        raise ConfigError(
            f"tuned={path} was made for another tokenizer ({tuned.tokenizer[:12]}… of {tuned.checkpoint.path}) than "
            f"{checkpoint.path} has ({tokenizer[:12]}…): tune again for this checkpoint"
        )
    for option in sorted({*tuned.files, *files}):
        then, now = tuned.files.get(option), files.get(option)
        if then is None or now is None or then.sha256 != now.sha256:
            raise ConfigError(
                f"tuned={path} was made with decoder.{option}={_named(then)}, but here it is {_named(now)}: "
                "give that file, or tune again"
            )
    if checkpoint.sha256 != tuned.checkpoint.sha256:
        log.warning(
            "warning: tuned=%s was tuned with another checkpoint (%s, sha256 %s…) than %s (%s…): tune again to be sure",
            path,
            tuned.checkpoint.path,
            tuned.checkpoint.sha256[:12],
            checkpoint.path,
            checkpoint.sha256[:12],
        )


def _named(file: FileIdentity | None) -> str:
    return "none" if file is None else f"{file.path} (sha256 {file.sha256[:12]}…)"


def describe(
    decoder: DecoderConfig,
    files: Mapping[str, FileIdentity],
    tuned: TunedDecoder | None = None,
    path: str | None = None,
) -> dict[str, Any]:
    """For reports: the decoder's options and files, and where its weights come from."""
    return {
        "decoder": dataclasses.asdict(decoder),
        "decoder_files": {option: dataclasses.asdict(file) for option, file in files.items()},
        "decoder_weights": _origin(decoder, tuned, path),
    }


def _origin(decoder: DecoderConfig, tuned: TunedDecoder | None, path: str | None) -> dict[str, Any]:
    if tuned is not None:
        on = tuned.chosen_on
        return {
            "origin": "tuned",
            "text": f"tuned on {on.manifest} ({on.num_utterances} utterances, sha256 {on.sha256[:12]}…), {tuned.date}",
            "file": path,
            "date": tuned.date,
            "manifest": {"path": on.manifest, "sha256": on.sha256, "num_utterances": on.num_utterances},
            "checkpoint_sha256": tuned.checkpoint.sha256,
            "results": tuned.results,
        }
    weights = {
        field.name: getattr(decoder, field.name) == field.default
        for field in dataclasses.fields(decoder)
        if field.name in WEIGHT_OPTIONS
    }
    if not weights:
        return {"origin": "none", "text": "none"}
    if all(weights.values()):
        return {"origin": "defaults", "text": "untuned defaults"}
    return {"origin": "given", "text": "given by hand; where they were tuned is not recorded"}
