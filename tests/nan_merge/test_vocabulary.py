import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.dtypes import DType
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.plan import align
from nan_merge.row_mapped import RowMappedTensor
from nan_merge.safetensors_file import BlockReader
from nan_merge.tokenizer_files import add_tokens, read_tokens, write_tokenizer
from nan_merge.vocabulary import match_to_place, match_vocabularies

Write = Callable[..., Checkpoint]
WORDS = [f"w{number}" for number in range(32)]  # stands for Llama's 32,000
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def save_tokenizer(folder: Path, words: Sequence[str], added: Sequence[str] = ()) -> None:
    tokenizer = Tokenizer(WordLevel({word: row for row, word in enumerate(words)}, words[0]))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A model with these tokens; row i of its embeddings is `size` + i."""

    def write(
        name: str,
        size: float,
        words: Sequence[str] = WORDS,
        added: Sequence[str] = (),
        num_rows: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir()
        num_rows = num_rows or len(words) + len(added)
        table = (size + torch.arange(float(num_rows)))[:, None].repeat(1, 3).to(dtype)
        tensors = {EMBED: table, HEAD: -table, "layers.0.weight": torch.ones(4, 4)}
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"vocab_size": num_rows}))
        save_tokenizer(folder, words, added)
        return open_checkpoint(str(folder), name)

    return write


def rows(checkpoint: Checkpoint, name: str = EMBED) -> list[float]:
    tensor = checkpoint.tensors[name]
    with BlockReader() as reader:
        return reader.read(tensor).view(tensor.shape)[:, -1].tolist()


def test_equal_vocabularies_are_left_alone(write: Write):
    base, one = write("base", 0), write("one", 100)
    matched = match_vocabularies(base, [one])
    assert matched.base is base
    assert matched.models == (one,)
    assert matched.vocabulary is not None
    assert (matched.vocabulary.num_rows, matched.vocabulary.added) == (32, {})


def test_the_bases_vocabulary_cuts_a_models_new_token(write: Write):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"])
    matched = match_vocabularies(base, [one])
    assert matched.base is base
    assert rows(matched.models[0]) == [100.0 + row for row in range(32)]
    assert len(align(matched.base, matched.models)) == 3


def test_a_union_takes_each_new_token_from_the_models_that_have_it(write: Write):
    base = write("base", 0)
    one = write("one", 100, added=["[PAD]"])
    two = write("two", 200, added=["<img>", "[PAD]"])
    matched = match_vocabularies(base, [one, two], "union")
    assert matched.vocabulary is not None
    assert matched.vocabulary.added == {"[PAD]": 32, "<img>": 33}
    assert matched.vocabulary.num_rows == 34
    pad, img = (132 + 233) / 2, 232.0
    assert matched.base is not None
    # The base has the mean of those that have a token, so that one owner's row comes out as it is.
    assert rows(matched.base)[31:] == [31.0, pad, img]
    assert rows(matched.models[0])[31:] == [131.0, 132.0, img]
    assert rows(matched.models[1])[31:] == [231.0, 233.0, 232.0]
    assert rows(matched.models[1], HEAD)[31:] == [-231.0, -233.0, -232.0]
    assert len(align(matched.base, matched.models)) == 3


def test_what_rows_come_from_is_known_by_files_and_a_digest(write: Write):
    base, one, two = write("base", 0), write("one", 1, added=["a"]), write("two", 2, added=["b"])
    found = {choice: match_vocabularies(base, [one, two], choice) for choice in ("one", "union")}
    tensors = [matched.models[1].tensors[EMBED] for matched in found.values()]
    assert all(isinstance(tensor, RowMappedTensor) for tensor in tensors)
    assert (
        len({tensor.map_digest for tensor in tensors if isinstance(tensor, RowMappedTensor)}) == 2
    )
    assert set(found["union"].models[1].files) == {*base.files, *one.files, *two.files}


def test_a_models_vocabulary_may_be_the_results(write: Write):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"])
    matched = match_vocabularies(base, [one], "one")
    assert matched.models[0] is one
    assert matched.base is not None
    assert rows(matched.base)[31:] == [31.0, 132.0]
    assert matched.vocabulary is not None
    assert matched.vocabulary.folder == one.folder


def test_rows_follow_tokens_and_not_numbers(write: Write):
    base, one = write("base", 0), write("one", 100, words=WORDS[::-1])
    matched = match_vocabularies(base, [one])
    assert rows(matched.models[0]) == [100.0 + row for row in reversed(range(32))]
    tensor = matched.models[0].tensors[EMBED]
    assert isinstance(tensor, RowMappedTensor)
    assert tensor.dtype == DType.F32


def test_a_token_that_a_model_lacks_is_unchanged_in_it(write: Write):
    base, one = write("base", 0), write("one", 100, words=WORDS[:-2])
    matched = match_vocabularies(base, [one])
    assert rows(matched.models[0])[28:] == [128.0, 129.0, 30.0, 31.0]


def test_special_tokens_and_padding_of_a_place_are_means_of_the_bases_rows(write: Write):
    base, one = write("base", 0, dtype=torch.bfloat16), write("one", 100, words=WORDS[::-1])
    place = write("place", 7, added=["<image>"], num_rows=36)
    matched = match_to_place(base, [one], place, 36)
    assert matched.vocabulary is not None
    assert matched.vocabulary.filled == ("<image>", 33, 34, 35)
    assert matched.base is not None
    assert rows(matched.base) == [*map(float, range(32)), *[15.5] * 4]
    assert rows(matched.models[0]) == [*(131.0 - row for row in range(32)), *[15.5] * 4]
    assert rows(matched.models[0], HEAD)[30:] == [-101.0, -100.0, *[-15.5] * 4]
    tensor = matched.base.tensors[EMBED]
    assert isinstance(tensor, RowMappedTensor)
    assert (tensor.num_mean_rows, len(tensor.runs)) == (4, 2)
    with BlockReader() as reader:
        whole = reader.read(tensor)
        pieces = [reader.read(tensor, first, 7) for first in range(0, 105, 7)]
    assert torch.equal(torch.cat([*pieces, whole[105:]]), whole)


def test_without_a_base_each_model_has_the_mean_of_its_own_rows(write: Write):
    models = [write("one", 0), write("two", 100)]
    matched = match_to_place(None, models, write("place", 7, added=["<image>"]), 33)
    assert [rows(model)[32] for model in matched.models] == [15.5, 115.5]


def test_words_that_no_model_has_are_no_rows_to_fill(write: Write):
    place = write("place", 7, words=[*WORDS, "more"], added=["<image>"])
    with pytest.raises(IncompatibleError, match="has the token 'more', which no model has and"):
        match_to_place(write("base", 0), [write("one", 100)], place, 34)


def test_padding_rows_are_matched_by_number_and_filled_by_a_union(write: Write):
    base = write("base", 0, num_rows=40)
    one = write("one", 100, added=["[PAD]"], num_rows=36)
    cut = match_vocabularies(base, [one])
    # Row 32 is padding in the base and a token in the model: the base's row.
    assert rows(cut.models[0])[31:] == [131.0, 32.0, 133.0, 134.0, 135.0, 36.0, 37.0, 38.0, 39.0]
    union = match_vocabularies(base, [one], "union")
    assert union.vocabulary is not None
    assert union.vocabulary.num_rows == 40
    assert rows(union.models[0])[31:34] == [131.0, 132.0, 133.0]
    assert union.base is not None
    assert rows(union.base)[31:34] == [31.0, 132.0, 33.0]


def test_a_token_beyond_the_last_row_is_none_of_the_model(write: Write):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"], num_rows=32)
    assert match_vocabularies(base, [one], "union").models == (one,)


def test_without_a_base_the_first_model_leads(write: Write):
    one, two = write("one", 0, added=["a"]), write("two", 100, added=["b"])
    matched = match_vocabularies(None, [one, two], "union")
    assert matched.base is None
    assert rows(matched.models[0])[31:] == [31.0, 32.0, 132.0]
    assert rows(matched.models[1])[31:] == [131.0, 32.0, 132.0]


def test_any_division_into_reads_gives_the_same_bytes(write: Write):
    words = [*WORDS[::2], *WORDS[1::2]]
    base = write("base", 0, dtype=torch.bfloat16)
    models = [write("one", 1, words, ["x"]), write("two", 2, added=["x"])]
    tensor = match_vocabularies(base, models, "union").models[0].tensors[EMBED]
    own_base = match_vocabularies(base, models, "union").base
    assert own_base is not None
    for mapped in (tensor, own_base.tensors[EMBED]):
        assert mapped.num_bytes == mapped.num_elements * mapped.dtype.itemsize
        with BlockReader() as reader:
            whole = reader.read(mapped)
            for size in (1, 2, 5, 7, 50):
                pieces: list[Tensor] = [
                    reader.read(mapped, start, min(size, mapped.num_elements - start))
                    for start in range(0, mapped.num_elements, size)
                ]
                assert torch.equal(torch.cat(pieces), whole)
    assert own_base.tensors[EMBED].stored_dtype == DType.BF16


def test_a_model_without_tokenizer_must_have_as_many_rows(write: Write):
    base, one = write("base", 0), write("one", 100)
    (one.folder / "tokenizer.json").unlink()
    assert match_vocabularies(base, [one]).models == (one,)
    two = write("two", 100, added=["[PAD]"])
    (two.folder / "tokenizer.json").unlink()
    with pytest.raises(IncompatibleError, match=r"two .* has 33 rows .*base 32, and no tokenizer"):
        match_vocabularies(base, [two])


def test_models_that_are_no_language_models_are_left_alone(write_checkpoint):
    base, one = (
        open_checkpoint(write_checkpoint(name, {"a": torch.ones(2)})) for name in ("base", "one")
    )
    matched = match_vocabularies(base, [one])
    assert (matched.base, matched.models, matched.vocabulary) == (base, (one,), None)


def test_an_unknown_choice_is_refused(write: Write):
    with pytest.raises(IncompatibleError, match=r"tokenizer: tow.*\(base, two\)"):
        match_vocabularies(write("base", 0), [write("two", 1)], "tow")


def test_a_head_that_only_some_models_have(write: Write):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"])
    del one.tensors[HEAD]
    with pytest.raises(IncompatibleError, match=r"lm_head.weight: no model that has token '\[PAD"):
        match_vocabularies(base, [one], "union")


def test_tokens_are_written_where_the_union_has_them(write: Write, tmp_path: Path):
    base = write("base", 0, added=["<s>"])
    one = write("one", 100, added=["[PAD]"])
    vocabulary = match_vocabularies(base, [one], "union").vocabulary
    assert vocabulary is not None
    config = {"added_tokens_decoder": {"32": {"content": "<s>", "special": True}}}
    (base.folder / "tokenizer_config.json").write_text(json.dumps(config))
    add_tokens(base.folder, vocabulary.added, vocabulary.folders)
    assert read_tokens(base.folder) == {
        **{w: i for i, w in enumerate(WORDS)},
        "<s>": 32,
        "[PAD]": 33,
    }
    loaded = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    assert loaded.get_added_tokens_decoder()[33].special
    config = json.loads((base.folder / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"]["33"]["content"] == "[PAD]"


def test_the_result_has_the_chosen_tokenizer_and_its_number_of_rows(write: Write, tmp_path: Path):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"])
    (one.folder / "chat_template.jinja").write_text("{{ x }}")
    out = tmp_path / "out"
    shutil.copytree(base.folder, out)
    for name in ("vocab.txt", "spiece.model"):
        (out / name).write_text("stale")
    chosen = match_vocabularies(base, [one], "one").vocabulary
    assert chosen is not None
    write_tokenizer(out, chosen.folder, chosen.added, chosen.folders, chosen.num_rows)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 33
    assert read_tokens(out)["[PAD]"] == 32
    assert (out / "chat_template.jinja").is_file()
    assert not (out / "vocab.txt").exists()
    assert not (out / "spiece.model").exists()


def test_a_tokenizer_file_that_is_a_link_elsewhere_is_not_copied(write: Write, tmp_path: Path):
    base, one = write("base", 0), write("one", 100, added=["[PAD]"])
    (tmp_path / "secret").write_text("mine")
    (one.folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    shutil.copytree(base.folder, tmp_path / "out")
    write_tokenizer(tmp_path / "out", one.folder, {}, [], 33)
    assert not (tmp_path / "out/chat_template.jinja").exists()


def test_a_row_that_the_tokenizer_would_not_give_is_refused(write: Write):
    base = write("base", 0)
    with pytest.raises(IncompatibleError, match="cannot take token 'new' in at row 77"):
        add_tokens(base.folder, {"new": 77}, [])


def test_sentencepiece_models_with_added_tokens(tmp_path: Path):
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    pieces = ["<unk>", "▁a", "b"]
    score = b"\x15\x00\x00\x80\xbf\x18\x02"  # a float and an enumeration, which are passed over
    content = b"".join(field(1, field(1, piece.encode()) + score) for piece in pieces)
    (tmp_path / "tokenizer.model").write_bytes(content + field(2, b"trainer"))
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 3}')
    assert read_tokens(tmp_path) == {"<unk>": 0, "▁a": 1, "b": 2, "[PAD]": 3}
    add_tokens(tmp_path, {"new": 4}, [])
    assert read_tokens(tmp_path)["new"] == 4
    (tmp_path / "tokenizer.model").write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is damaged.*cut short"):
        read_tokens(tmp_path)


def test_vocab_json_and_vocab_txt(tmp_path: Path):
    # Only a new line ends a token; U+2028 and U+0085 break lines elsewhere.
    (tmp_path / "vocab.txt").write_text("\u2028\n[UNK]\n\u0085\nthe\n", encoding="utf-8")
    assert read_tokens(tmp_path) == {"\u2028": 0, "[UNK]": 1, "\u0085": 2, "the": 3}
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n")
    assert read_tokens(tmp_path) == {"[UNK]": 0, "the": 1}
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    assert read_tokens(tmp_path) == {"a": 0}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        read_tokens(tmp_path)
