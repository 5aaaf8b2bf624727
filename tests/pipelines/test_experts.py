from __future__ import annotations

import json

import pytest

from evaluators.backends import clip
from pipelines.config import Experts
from pipelines.experts import _experts_key

DIGESTS = {"digits": "1", "texture": "2"}


def key(backbone: str) -> str:
    return _experts_key(Experts(backbone=backbone, tasks=("digits", "texture")), 0, DIGESTS)


def test_experts_are_trained_anew_when_the_content_of_the_model_config_changes(
    tmp_path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(clip, "CONFIG_FOLDER", tmp_path)
    (tmp_path / "mini.json").write_text(json.dumps({"embed_dim": 64}))
    first = key("mini")
    (tmp_path / "mini.json").write_text(json.dumps({"embed_dim": 64}, indent=4))
    assert key("mini") == first
    (tmp_path / "mini.json").write_text(json.dumps({"embed_dim": 32}))
    assert key("mini") != first


def test_a_model_of_open_clips_own_has_no_file():
    assert key("ViT-B-32") == key("ViT-B-32") != key("nan-merge-mini")
