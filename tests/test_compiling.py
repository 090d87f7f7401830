"""Compiled code is kept, made anew when any of its sources changes, and works where nothing can be kept."""

import ast
import os
import subprocess
import sys
from pathlib import Path

from asr.decode import search_kernels

DECODE = Path(search_kernels.__file__).parent
INNER = """
from numba import njit
@njit
def inner(x):
    return x + {}
"""
OUTER = """
from pathlib import Path
from asr.compiling import compiled_to_disk
from inner import inner
def outer(x):
    return inner(x)
outer = compiled_to_disk(outer, [Path(__file__).with_name("inner.py")])
print(outer(1), sum(outer.stats.cache_hits.values()))
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=variables | environment | {"PYTHONPATH": os.pathsep.join([str(folder), str(DECODE.parents[1])])},
        check=True,
        capture_output=True,
        text=True,
    )


def test_a_change_in_another_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text(OUTER)
    found = []
    for added in (1, 1, 100):
        (tmp_path / "inner.py").write_text(INNER.format(added))
        found.append(run("import outer", tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")).stdout.split())
    assert found == [["2", "0"], ["2", "1"], ["101", "0"]]


def test_the_search_names_all_that_it_is_put_together_from() -> None:
    imported = {
        node.module.rpartition(".")[2]
        for path in DECODE.glob("*_kernel*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("asr.decode")
    }
    assert imported == {path.stem for path in search_kernels._SOURCES}


def test_where_nothing_can_be_kept_it_is_said_once(tmp_path: Path) -> None:
    code = "from asr.decode import beam, estimate; import numpy as np; from asr.decode import search_kernels as s\n"
    code += "print(s.smallest_of(np.ones(3), 3))"
    found = run(code, tmp_path, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator")
    assert found.stdout.split() == ["1.0"]
    assert found.stderr.count("set NUMBA_CACHE_DIR") == 1
