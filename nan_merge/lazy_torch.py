"""torch, imported when it is first used.

Importing it takes longer than planning a merge, or than merging a small model by compiled loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
else:

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            import torch

            found = getattr(torch, name)
            self.__dict__[name] = found
            return found

    torch = _Torch()

__all__ = ["torch"]
