"""An environment with a program that behaves like OpenCompass, well or badly."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

MAIN = Path(__file__).with_name("fake_opencompass_main.py")

_INTERPRETER = """\
#!{python}
import runpy, sys
if sys.argv[1] == "-I":
    if {version!r} is None:
        sys.exit("PackageNotFoundError: opencompass")
    print({version!r})
else:
    sys.argv.pop(0)
    sys.path[:0] = ["the script's folder", {here!r}]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


class FakeOpenCompass:
    """The environment; ``behaviour`` says how its program behaves from now on."""

    def __init__(self, folder: Path, version: str | None = "0.5.4") -> None:
        self.python = folder / "bin" / "python"
        self._module = folder / "opencompass" / "cli"
        for path in (self.python.parent, self._module):
            path.mkdir(parents=True)
        for package in (self._module.parent, self._module):
            (package / "__init__.py").touch()
        shutil.copy(MAIN, self._module / "main.py")
        self.behave("well")
        text = _INTERPRETER.format(python=sys.executable, version=version, here=str(folder))
        self.python.write_text(text)
        self.python.chmod(0o755)

    def behave(self, behaviour: str) -> None:
        (self._module / "behaviour").write_text(behaviour)

    @property
    def calls(self) -> list[str]:
        """Which benchmarks it was run for."""
        path = self._module / "calls"
        return path.read_text().split() if path.exists() else []

    @property
    def child(self) -> int:
        """The process that it started while it hung."""
        return int((self._module / "child").read_text())
