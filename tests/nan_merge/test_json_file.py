import pytest

from nan_merge.errors import CheckpointError
from nan_merge.json_file import read_json_table


def test_a_table_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"ü": [1, null]}', encoding="utf-8")
    assert read_json_table(tmp_path / "a.json", "") == {"ü": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Cannot read .*a\.json: No such file or directory\. Save it again\."),
        ("{", r"a\.json is damaged: it is no JSON \(.*\)\. Save it again\."),
        ("[1]", r"a\.json is damaged: it holds no JSON table\. Save it again\."),
    ],
)
def test_anything_else_is_an_error_with_its_mend(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_json_table(tmp_path / "a.json", "Save it again.")
