from __future__ import annotations

import json

import pytest

from evaluators.backends import clip
from pipelines.config import Experts
from pipelines.experts import _experts_key, with_shared_backbone

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


def test_a_model_config_of_ones_own_is_copied_to_where_all_workers_see_it(tmp_path):
    own = tmp_path / "here" / "own.json"
    own.parent.mkdir()
    own.write_text('{"embed_dim": 64}')
    experts = Experts(backbone=str(own), tasks=("digits", "texture"))
    shared = with_shared_backbone(experts, tmp_path / "cache")
    assert shared.backbone.startswith(str(tmp_path / "cache"))
    assert clip.model_config_path(shared.backbone).name == "own.json"
    assert clip.model_config_path(shared.backbone).read_text() == '{"embed_dim": 64}'
    assert key(shared.backbone) == key(str(own))  # nothing is trained anew for where it lies
    named = Experts(backbone="nan-merge-mini", tasks=("digits", "texture"))
    assert with_shared_backbone(named, tmp_path / "cache") == named
