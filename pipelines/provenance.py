"""Which commit of the user's own files a run was started from."""

from __future__ import annotations

import subprocess
from pathlib import Path

GIT_SECONDS = 10


def git_commit(folder: Path) -> str:
    """Commit that a folder is at, with a note if files are changed; empty outside of git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changed files" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""  # no git, no repository, or one that is not ours to read
    return found.stdout.strip()
