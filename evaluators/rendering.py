"""Turn samples into prompts: text and token ids, by the checkpoint's own tokenizer.

Text goes together as it stands. Messages go through the chat template, empty ones left out and
neighbours of one role joined by a line break, as OpenCompass does it
(``opencompass/models/huggingface_above_v4_33.py``, ``_convert_chat_messages``); without a chat
template they are joined by the profile's separator.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from evaluators.profiles import Profile
from evaluators.samples import Message, Piece, Sample
from nan_merge.errors import CheckpointError, EvaluationError, MissingExtraError


@dataclass(frozen=True)
class Wording:
    """How the pieces of a sample become one text.

    Attributes:
        uses_chat_template: Whether the model's chat template is applied.
        text_separator: What joins messages where it is not.
        user_turn_end: What ends every user's message where it is.
    """

    uses_chat_template: bool
    text_separator: str = "\n"
    user_turn_end: str = ""


@dataclass(frozen=True)
class Prompt:
    """What a model is shown.

    Attributes:
        text: As rendered, without what the tokenizer adds.
        token_ids: Of the text, special tokens included.
        num_dropped_shots: Solved examples left out because the context was too short.
        image_digests: Of the pictures that it shows, in order.
    """

    text: str
    token_ids: tuple[int, ...]
    num_dropped_shots: int = 0
    image_digests: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the text and of the images' digests."""
        # What cannot be encoded, half a surrogate pair from broken data, still has a digest.
        content = "\0".join([self.text, *self.image_digests])
        return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]


def wording_of(profile: Profile, uses_chat_template: bool) -> Wording:
    """How the samples of a profile become text, with the model's chat template or without."""
    return Wording(uses_chat_template, profile.text_separator, profile.user_turn_end)


def load_tokenizer(folder: Path) -> Any:
    """Load a checkpoint's tokenizer; code that lies in the checkpoint is never run.

    Raises:
        CheckpointError: If the folder has no tokenizer, or one that needs code of its own.
        MissingExtraError: If transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            "Language models need transformers: pip install 'nan-merge[language]'"
        ) from error
    if not folder.is_dir():
        raise CheckpointError(f"There is no checkpoint folder {folder}.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        _add_chat_template(tokenizer, folder)
        return tokenizer
    except Exception as error:  # whatever the tokenizer's class makes of damaged files
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}. Copy the tokenizer "
            "files of the base model into the folder."
        ) from error


def _add_chat_template(tokenizer: Any, folder: Path) -> None:
    """Older vision-language models keep the template in a file that only processors read."""
    path = folder / "chat_template.json"
    if not tokenizer.chat_template and path.is_file():
        tokenizer.chat_template = json.loads(path.read_text(encoding="utf-8"))["chat_template"]


def end_token_ids(tokenizer: Any, folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's end of sequence, and what the checkpoint names.

    Models that chat often end a turn with another token than a text;
    ``generation_config.json`` then lists both. Nothing else is read from that file.
    """
    ids = set[int]()
    if tokenizer.eos_token_id is not None:
        ids.add(int(tokenizer.eos_token_id))
    path = folder / "generation_config.json"
    if path.is_file():
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise CheckpointError(f"Cannot read {path}: {error}") from error
        ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return tuple(sorted(ids))


def stop_token_ids(tokenizer: Any, stops: Sequence[str]) -> tuple[int, ...]:
    """Of the stop strings that are special tokens: these never show in what a model writes."""
    special = set(tokenizer.all_special_ids)
    ids = [tokenizer.convert_tokens_to_ids(stop) for stop in stops]
    return tuple(each for each in ids if each in special and each != tokenizer.unk_token_id)


def check_chat_template(tokenizer: Any, folder: Path) -> None:
    """Raise `EvaluationError` if a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise EvaluationError(
            f"{folder} has no chat template. Copy chat_template.jinja, or tokenizer_config.json "
            "with its 'chat_template', from the base model, or evaluate with `--no-chat-template` "
            "(`chat_template: false` in a run file)."
        )


def render(tokenizer: Any, sample: Sample, wording: Wording, most_tokens: int) -> Prompt:
    """Make the prompt of a sample; shots that do not fit are left out, the last ones first.

    Args:
        tokenizer: From `load_tokenizer`.
        sample: What to ask.
        wording: How its pieces become one text.
        most_tokens: Most tokens of the prompt. The prompt is longer only if it is too long
            without any shots.

    Raises:
        EvaluationError: If the chat template refuses the messages.
    """
    dropped = 0
    while True:
        text = prompt_text(tokenizer, sample, wording, len(sample.shots) - dropped)
        token_ids = encode(tokenizer, [text], wording)[0]
        if len(token_ids) <= most_tokens or dropped == len(sample.shots):
            digests = tuple(image.digest for image in sample.images)
            return Prompt(text, tuple(token_ids), dropped, digests)
        dropped += 1


def prompt_text(tokenizer: Any, sample: Sample, wording: Wording, num_shots: int) -> str:
    """The text of a prompt with so many of the sample's shots.

    Raises:
        EvaluationError: If the chat template refuses the messages.
    """
    turns = _turns((sample.lead, *sample.shots[:num_shots], sample.question))
    if not wording.uses_chat_template:
        image = f"{image_token(tokenizer)}\n" if sample.images else ""
        shown = [image * turn.num_images + turn.content for turn in turns]
        return wording.text_separator.join(shown)
    ends = {"user": wording.user_turn_end}
    messages: list[dict[str, Any]] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        same = list(group)
        text = "\n".join(turn.content for turn in same) + ends.get(role, "")
        num_images = sum(turn.num_images for turn in same)
        parts = [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]
        messages.append({"role": role, "content": parts if num_images else text})
    is_begun = bool(messages) and messages[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not is_begun,
            continue_final_message=is_begun,
        )
    except Exception as error:  # a template may raise whatever it likes
        roles = ", ".join(message["role"] for message in messages)
        raise EvaluationError(
            f"Sample {sample.id}: the model's chat template refuses its messages ({roles}): "
            f"{_first_line(error)}. Evaluate with chat_template: false, or mend the template."
        ) from error


def image_token(tokenizer: Any) -> str:
    """What stands for an image in a text that no chat template makes."""
    return str(getattr(tokenizer, "image_token", None) or "<image>")


def start_of_text(tokenizer: Any, wording: Wording) -> str:
    """What the tokenizer puts before a text, as text; "" where a chat template does."""
    if wording.uses_chat_template:
        return ""
    return "".join(tokenizer.convert_ids_to_tokens(_leading_tokens(tokenizer)))


def encode(tokenizer: Any, texts: Sequence[str], wording: Wording) -> list[list[int]]:
    """Token ids of prompts, with what the tokenizer puts before a text exactly once.

    A chat template writes the special tokens itself, so none are added to its text.
    """
    # Half a surrogate pair cannot be encoded; it becomes a question mark, as in a file.
    clean = [text.encode(errors="replace").decode() for text in texts]
    rows: list[list[int]] = tokenizer(clean, add_special_tokens=False)["input_ids"]
    if wording.uses_chat_template:
        return rows
    first = _leading_tokens(tokenizer)
    return [row if row[: len(first)] == first else first + row for row in rows]


def _leading_tokens(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, e.g. its beginning of sequence; often nothing."""
    added: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    end = tokenizer.eos_token_id
    if added and added[-1] == end and (len(added) > 1 or end != tokenizer.bos_token_id):
        return added[:-1]  # some end every text; a prompt goes on
    return added


def _turns(pieces: Sequence[Piece]) -> list[Message]:
    """Messages that are not empty; text that follows text is one turn of the user."""
    turns: list[Message] = []
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        if is_text:
            turns.append(Message("user", "".join(map(str, group))))
        else:
            turns += [
                message for piece in group for message in piece if isinstance(message, Message)
            ]
    return [turn for turn in turns if turn.content or turn.num_images]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
