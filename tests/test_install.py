"""The wheel works outside the checkout: built, installed into a clean environment, run from ``/``."""

import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that holds the wheel, and the dependencies by path only.

    A ``.pth`` line adds this environment's packages without running their own ``.pth`` files, so that
    an editable install of the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    run(build, cwd=folder)
    environment = folder / "environment"
    run([sys.executable, "-m", "venv", "--without-pip", environment], cwd=folder)
    python = environment / "bin" / "python"
    site = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], cwd=folder).strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (wheel,) = folder.glob("*.whl")
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel],
        cwd=folder,
    )
    return environment / "bin"


def run(command: list[object], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.slow
def test_commands_find_their_configuration_from_the_root_folder(installed: Path) -> None:
    composed = run([installed / "asr-train", "experiment=demo", "--cfg", "job"], cwd=Path("/"))
    assert "kind: bilstm" in composed
    where = run([installed / "python", "-c", "import asr; print(asr.__file__)"], cwd=Path("/"))
    assert ROOT not in Path(where.strip()).parents


@pytest.mark.slow
def test_every_yaml_and_template_of_the_checkout_is_in_the_wheel(installed: Path) -> None:
    where = run([installed / "python", "-c", "import asr; print(asr.__path__[0])"], cwd=Path("/"))
    package = Path(where.strip())
    shipped = {path.relative_to(package / "conf") for path in (package / "conf").rglob("*.yaml")}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    pages = {path.name for path in (package / "report").iterdir() if path.suffix in {".html", ".css", ".js"}}
    assert pages == {"page.html", "page.css", "page.js"}
    modules = {path.relative_to(package) for path in package.rglob("*.py")}
    assert modules == {path.relative_to(ROOT / "asr") for path in (ROOT / "asr").rglob("*.py")}


@pytest.mark.slow
def test_every_console_script_starts(installed: Path) -> None:
    scripts = sorted(script.name for script in installed.glob("asr-*"))
    declared = [entry.name for entry in distribution("asr").entry_points if entry.group == "console_scripts"]
    assert scripts == sorted(declared)
    for script in scripts:
        assert "python -m asr." in run([installed / script, "--help"], cwd=Path("/"))
