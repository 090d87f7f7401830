"""Launching commands: schemas registered with Hydra, one-line errors, exit codes.

Exit code 0 means success, 2 a user mistake (one line on stderr), 130 Ctrl-C; any other exception
is a bug and keeps its traceback.
"""

import dataclasses
import difflib
import faulthandler
import logging
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asr.config import KINDS
from asr.errors import AsrError

CONFIG_DIR = str(Path(__file__).parent / "conf")
ConfigT = TypeVar("ConfigT")
INTERRUPTED = 130
"""Exit code after Ctrl-C."""


def launch(
    task: Callable[[ConfigT], int | None],
    *,
    config_name: str,
    schema: type[ConfigT],
    plain_arguments_as: str | None = None,
) -> int:
    """Compose ``conf/<config_name>.yaml`` with the command line, check it, run ``task`` on it.

    Args:
        task: receives the typed config; returns an exit code or None for success.
        plain_arguments_as: option (a list of strings) that collects arguments which are neither
            ``key=value`` nor flags, as in ``asr.transcribe a.wav b.flac``.
    """
    give_signals_a_stack()
    register_schemas(config_name, schema)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through: this module words them
    arguments = sys.argv[1:]
    plain: list[str] = []
    if plain_arguments_as is not None:
        plain, arguments = split_plain_arguments(arguments)
    exit_codes: list[int] = []

    @hydra.main(config_path=CONFIG_DIR, config_name=config_name, version_base="1.3")
    def run(composed: DictConfig) -> None:
        if INTERRUPTED in exit_codes:  # the sweep's other jobs are not wanted either
            return
        if plain_arguments_as is not None:
            composed[plain_arguments_as] = list(composed[plain_arguments_as]) + plain
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # the command that repeats this job, not the sweep
            sys.argv = [original[0], *HydraConfig.get().overrides.task]
        for line in overruled_groups(HydraConfig.get().runtime.choices, given_options()):
            sys.stderr.write(f"note: {line}\n")
        try:
            exit_codes.append(task(to_typed(composed)) or 0)
        except AsrError as error:  # here, because Hydra announces what leaves this function in its own words
            exit_codes.append(fail(str(error)))
        except OmegaConfBaseException as error:  # a mandatory option is missing
            exit_codes.append(fail(one_line(error, schema)))

    empty = next((argument for argument in arguments if names_no_choice(argument)), None)
    if empty is not None:
        return fail(
            f"{empty}: a group cannot be empty; leave it out for the default, or see --help for the choices"
        )
    original = sys.argv
    sys.argv = [original[0], *arguments]
    try:
        run()
    except (HydraException, OmegaConfBaseException) as error:
        return fail(one_line(error, schema))
    except KeyboardInterrupt:
        return fail("interrupted", code=INTERRUPTED)
    finally:
        sys.argv = original
    return max(exit_codes, default=0)


def give_signals_a_stack() -> None:
    """Have signals handled on a stack of their own; a crash also leaves a traceback.

    While oneDNN (torch 2.11) multiplies matrices on a CPU with AVX-512, its stack pointer may be an address in
    the heap. A signal that came then, Ctrl-C or the end of a loader process, used to be handled in the middle of other
    objects, and the program aborted. Python's handlers use the alternate stack that faulthandler makes.
    """
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)


def given_options() -> frozenset[str]:
    """Names of the options and groups that the command line gives; empty outside of :func:`launch`."""
    if not HydraConfig.initialized():
        return frozenset()
    overrides = HydraConfig.get().overrides.task
    return frozenset(override.split("=", 1)[0].lstrip("+~").split("@")[0] for override in overrides)


def overruled_groups(choices: Mapping[str, str], given: Set[str]) -> Iterator[str]:
    """Where the chosen experiment changes a group that the command line has chosen as well, which Hydra allows."""
    experiment = choices.get("experiment")
    if experiment is None:
        return
    preset = _options_of_preset(experiment)
    for group in sorted(name for name in given & preset.keys() if (Path(CONFIG_DIR) / name).is_dir()):
        options = sorted({f"{group}.{option}" for option in preset[group]} - given)
        if options:
            yield (
                f"experiment={experiment} sets {', '.join(options)} in {group}={choices[group]}, too; "
                "give them to have them otherwise"
            )


def _options_of_preset(name: str) -> dict[str, set[str]]:
    """Of each group the options that an experiment, or one that it builds on, sets."""
    path = Path(CONFIG_DIR) / "experiment" / f"{name.removeprefix('/experiment/')}.yaml"
    found: dict[str, set[str]] = defaultdict(set)
    if not path.is_file():  # one of --config-dir
        return found
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for other in content.pop("defaults", []):
        if isinstance(other, str) and other != "_self_":
            for group, options in _options_of_preset(other).items():
                found[group] |= options
    for group, options in content.items():
        if isinstance(options, dict):
            found[group] |= options.keys()
    return found


def to_typed(composed: DictConfig) -> Any:
    """A composed configuration as its schema's dataclass; runs every cross-field check."""
    return OmegaConf.to_object(composed)


def register_schemas(config_name: str, schema: type) -> None:
    """Make ``<config_name>_schema`` and each group's ``<kind>_schema`` known to Hydra.

    A schema that extends another's stands in for it as well, so that its YAML can build on the other's.
    """
    OmegaConf.register_new_resolver("job_suffix", job_suffix, replace=True)
    store = ConfigStore.instance()
    store.store(name=f"{config_name}_schema", node=schema)
    for base in schema.__mro__[1:-1]:
        store.store(name=f"{base.__name__.removesuffix('Config').lower()}_schema", node=schema)
    for group, kinds in KINDS.items():
        for kind, node in kinds.items():
            store.store(group=group, name=f"{kind}_schema", node=node)


def job_suffix() -> str:
    """``_3`` in the third job of a multirun, else nothing: jobs that start in one second keep apart."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return f"_{HydraConfig.get().job.num}"
    return ""


def names_no_choice(argument: str) -> bool:
    """Whether this is ``group=null`` or ``group=``, for which Hydra has no message."""
    group, _, choice = argument.partition("=")
    return choice in {"", "null"} and "=" in argument and group != "" and (Path(CONFIG_DIR) / group).is_dir()


def split_plain_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """``(plain, for_hydra)``. An existing file is plain even when its name holds '='."""
    plain: list[str] = []
    for_hydra: list[str] = []
    takes_value = False
    for argument in arguments:
        is_flag = argument.startswith("-")
        is_override = re.match(r"^[~+]{0,2}[A-Za-z_][\w./@]*=", argument) is not None
        if takes_value or is_flag or (is_override and not Path(argument).exists()):
            for_hydra.append(argument)
        else:
            plain.append(argument)
        takes_value = argument in {"--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--info", "-i"}
    return plain, for_hydra


def fail(message: str, code: int = 2) -> int:
    sys.stderr.write(f"error: {' '.join(message.splitlines())}\n")
    return code


def one_line(error: Exception, schema: type) -> str:
    """Hydra's and OmegaConf's multi-line complaints as one line, with a suggestion for misspelt keys."""
    text = f"{error}\n{error.__cause__ or ''}"
    key = option_at_fault(error)
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' not in", text)
    if unknown:
        return unknown_option(key or unknown.group(1), schema)
    if "issing mandatory value" in text:
        return f"option {key or text.rsplit(':', 1)[-1].strip()!r} must be given"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Config search path:" in lines:
        lines = [line for line in lines[: lines.index("Config search path:")] if not line.endswith("_schema")]
    lines = [line for line in lines if not line.startswith(("full_key", "reference_type", "object_type"))]
    message = "; ".join(lines)
    return message if key in message else f"{key}: {message}"


def option_at_fault(error: BaseException | None) -> str:
    """The dotted option that an error, or one of those that led to it, is about; empty if none says."""
    while error is not None:
        key = getattr(error, "full_key", None)
        if key:
            return str(key)
        error = error.__cause__ or error.__context__
    return ""


def unknown_option(name: str, schema: type) -> str:
    """The misspelt option, with the nearest one that exists or the choice under which it would exist."""
    group, _, leaf = name.partition(".")
    fitting = [kind for kind, node in KINDS.get(group, {}).items() if leaf in field_names(node)]
    if fitting:
        return f"unknown option {name!r}: it exists only for kind {' or '.join(fitting)} of {group}"
    close = difflib.get_close_matches(name, option_names(schema), n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else "; see --help for the options"
    return f"unknown option {name!r}{hint}"


def field_names(schema: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(schema)]


def option_names(schema: type) -> list[str]:
    """Every dotted option name that ``schema`` or any kind of any group knows."""
    names = field_names(schema)
    for group, kinds in KINDS.items():
        for node in kinds.values():
            names += [f"{group}.{name}" for name in field_names(node)]
    return names


def setup_logging(log_file: Path | None = None) -> None:
    """Messages of this program at INFO to the terminal (and a file); warnings of everybody else."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log_file is not None:
        to_file = logging.FileHandler(log_file)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        handlers.append(to_file)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, format="%(message)s", force=True)
    logging.getLogger("asr").setLevel(logging.INFO)
