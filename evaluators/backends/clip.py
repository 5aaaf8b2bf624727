"""CLIP: build it, make a zero-shot head with its text tower, classify with its image tower.

The head comes from the frozen text tower of the pretrained model, so all fine-tunes of one
model share it; only image towers are fine-tuned and merged. Files are in ``clip_checkpoints``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluators.torchvision_repair import repair
from nan_merge.errors import ConfigError, EvaluationError, MissingExtraError
from nan_merge.tasks import report_progress

if TYPE_CHECKING:
    from open_clip import CLIP

CONFIG_FOLDER = Path(__file__).parent.parent / "open_clip_configs"


@dataclass(frozen=True)
class ImageTower:
    """An image encoder and what its pixels must look like.

    Attributes:
        name: Name of the architecture, e.g. ``nan-merge-mini`` or ``ViT-B-32``.
        model_config: open_clip's model config.
        mean: Of each RGB channel, on the scale 0 to 1.
        std: Of each RGB channel, on the scale 0 to 1.
        visual: Maps float32 pixels (n, 3, size, size) to embeddings (n, embed_dim).
    """

    name: str
    model_config: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    visual: nn.Module

    @property
    def image_size(self) -> int:
        """Height and width of its images in pixels."""
        return int(self.model_config["vision_cfg"]["image_size"])


@dataclass(frozen=True)
class Clip:
    """A whole CLIP; ``model.visual`` is ``tower.visual``."""

    tower: ImageTower
    model: CLIP
    tokenize: Callable[[list[str]], Tensor]  # prompts -> int64 (n, context_length)


def build_clip(model: str | Path, *, seed: int) -> Clip:
    """Build a CLIP with random weights.

    Args:
        model: An open_clip model config (``.json``; its stem is the model's name), the stem of
            a file in ``open_clip_configs``, or a name that open_clip knows.
        seed: Of the initial weights; the global random state stays as it was.

    Raises:
        ConfigError: If there is no such model, or it is not of open_clip's plain CLIP class.
        MissingExtraError: If open_clip is not installed.
    """
    open_clip = import_open_clip()
    path = model_config_path(model)
    known = open_clip.list_models()
    if path.is_file():
        name, config = path.stem, json.loads(path.read_text(encoding="utf-8"))
        if name not in known:
            open_clip.add_model_config(path)
    elif model in known:
        name, config = str(model), open_clip.get_model_config(model)
    else:
        raise ConfigError(f"There is no file {path} and open_clip has no model {str(model)!r}.")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return new_clip(name, config, preprocess, seed=seed)


def model_config_path(model: str | Path) -> Path:
    """Where ``build_clip`` looks for a config; open_clip's own models have no file there."""
    return Path(model) if str(model).endswith(".json") else CONFIG_FOLDER / f"{model}.json"


def import_open_clip() -> Any:
    """Import open_clip; torchvision is repaired first. Raises ``MissingExtraError``."""
    repair()
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtraError("CLIP needs open_clip: pip install 'nan-merge[eval]'") from error
    return open_clip


def new_clip(
    name: str, config: dict[str, Any], preprocess: Mapping[str, Any], *, seed: int
) -> Clip:
    """Build a CLIP of random weights from open_clip's model and preprocess configs.

    Raises:
        ConfigError: If the config is damaged or not of open_clip's plain CLIP class.
    """
    open_clip = import_open_clip()
    if config.get("custom_text") or "hf_model_name" in config.get("text_cfg", {}):
        raise ConfigError(f"{name}: only open_clip's plain CLIP models are supported.")
    mean = preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = preprocess.get("std", open_clip.OPENAI_DATASET_STD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Not open_clip.create_model: it warns on the root logger that weights are random.
        try:
            model = open_clip.CLIP(**config).float().eval()
        except (TypeError, KeyError, AttributeError) as error:
            raise ConfigError(f"{name}: not a model config of open_clip: {error}") from error
    tower = ImageTower(name, config, tuple(mean), tuple(std), model.visual)
    context_length = config["text_cfg"].get("context_length", 77)
    return Clip(tower, model, open_clip.SimpleTokenizer(context_length=context_length))


@torch.no_grad()  # not inference_mode: training multiplies by this head
def zero_shot_head(clip: Clip, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Encode every class as the mean of its prompts (CLIP, arXiv:2103.00020, section 3.1.4).

    Returns:
        float32 (num_classes, embed_dim); every row has the length exp(logit_scale), so that
        its product with a unit image embedding is a logit.
    """
    rows = []
    for class_name in class_names:
        prompts = [template.replace("{}", class_name) for template in templates]
        embeddings = clip.model.encode_text(clip.tokenize(prompts), normalize=True)
        rows.append(functional.normalize(embeddings.mean(dim=0), dim=0))
        report_progress(sum(map(len, prompts)))
    return torch.stack(rows) * clip.model.logit_scale.exp()


def place_tower(tower: ImageTower, device: str, dtype: str = "float32") -> ImageTower:
    """Move a tower to a device, and choose what it computes in.

    Args:
        tower: Of float32 weights.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32``, ``bfloat16``, or ``auto``: bfloat16 where the device multiplies it,
            and is faster for that; float32 elsewhere. Embeddings are normalised and compared with
            the head in float32 in any case.
    """
    half = dtype == "bfloat16" or (dtype == "auto" and multiplies_bfloat16(device))
    visual = tower.visual.to(device=device, dtype=torch.bfloat16 if half else torch.float32)
    return replace(tower, visual=visual.eval())


def multiplies_bfloat16(device: str) -> bool:
    """Whether a GPU is asked for, or this processor has AVX512-BF16 or AMX.

    Others unpack bfloat16 to float32 for every product, and gain nothing.
    """
    # torch tells it only by names with an underscore; one that goes away means float32.
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device != "cpu" or any(getattr(torch.cpu, name, bool)() for name in known)


def classify(
    tower: ImageTower, head: Tensor, images: np.ndarray, batch_size: int = 250
) -> tuple[np.ndarray, np.ndarray]:
    """Predict the class of each image; see `classify_all`."""
    return classify_all([tower], [head], images, batch_size)[0]


@torch.inference_mode()
def classify_all(
    towers: Sequence[ImageTower],
    heads: Sequence[Tensor],
    images: np.ndarray,
    batch_size: int = 250,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predict the class of each image with several towers, in one pass over the images.

    Args:
        towers: Image encoders of one architecture, on one device.
        heads: Of each, from ``zero_shot_head``, float32 (num_classes, embed_dim).
        images: uint8 RGB (n, height, width, 3); other sizes than the towers' are fitted.
        batch_size: Images a forward pass.

    Returns:
        For each tower, predicted classes, int64 (n,), and log-probabilities, float32 (n,
        num_classes).

    Raises:
        EvaluationError: If a head is of another model, or a result is not finite.
    """
    for tower, head in zip(towers, heads, strict=True):
        _refuse_other_head(tower, head)
    were_training = [tower.visual.training for tower in towers]
    parts: list[list[Tensor]] = [[] for _ in towers]
    first = next(towers[0].visual.parameters())
    for tower in towers:
        tower.visual.eval()
    for start in range(0, len(images), batch_size):
        batch = fit_images(images[start : start + batch_size], towers[0].image_size)
        batch = np.require(batch, requirements="W")  # torch wants no read-only memory map
        raw = torch.from_numpy(batch).to(first.device).permute(0, 3, 1, 2)
        pixels = normalise_pixels(raw, towers[0]).to(first.dtype)
        for tower, head, found in zip(towers, heads, parts, strict=True):
            logits = image_logits(tower.visual, head.to(first.device), pixels)
            found.append(functional.log_softmax(logits, dim=1).cpu())
    for tower, was_training in zip(towers, were_training, strict=True):
        tower.visual.train(was_training)
    return [_answers(tower, torch.cat(found)) for tower, found in zip(towers, parts, strict=True)]


def _refuse_other_head(tower: ImageTower, head: Tensor) -> None:
    if head.shape[1] != tower.model_config["embed_dim"]:
        raise EvaluationError(
            f"The head has {head.shape[1]} dimensions, but {tower.name} embeds images in "
            f"{tower.model_config['embed_dim']}. Make it with the text tower of the same model."
        )


def _answers(tower: ImageTower, log_probability: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if not log_probability.isfinite().all():
        raise EvaluationError(f"{tower.name} gives values that are not finite; check its weights.")
    return log_probability.argmax(dim=1).numpy(), log_probability.numpy()


def image_logits(visual: nn.Module, head: Tensor, pixels: Tensor) -> Tensor:
    """Similarity of images to classes, times the scale: float32 (n, num_classes)."""
    return functional.normalize(visual(pixels).float(), dim=1) @ head.T


def normalise_pixels(images: Tensor, tower: ImageTower) -> Tensor:
    """Turn uint8 (n, 3, s, s) into float32 of about zero mean and unit variance."""
    mean, std = (
        torch.tensor(each, device=images.device).view(3, 1, 1) for each in (tower.mean, tower.std)
    )
    return (images.float() / 255 - mean) / std


def fit_images(images: np.ndarray, size: int) -> np.ndarray:
    """Scale the shorter side to ``size`` (bicubic), then crop the centre, as open_clip does.

    Takes uint8 (n, height, width, 3) and returns uint8 (n, size, size, 3).
    """
    if images.shape[1:3] == (size, size):
        return np.ascontiguousarray(images)
    from PIL import Image

    height, width = images.shape[1:3]
    shorter = min(height, width)
    new_height, new_width = height * size // shorter, width * size // shorter
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    fitted = []
    for image in images:
        scaled = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
        fitted.append(np.asarray(scaled)[top : top + size, left : left + size])
    return np.stack(fitted)
