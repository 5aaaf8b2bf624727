"""Sets are decoded once, part by part, to the same samples whatever layout they come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evaluators.clip_sets import CLIP_SETS, prepare
from evaluators.clip_sets.layouts import list_images
from evaluators.clip_sets.pictures import fit_picture
from evaluators.clip_sets.prepare import (
    clip_sample_cluster,
    decode_part,
    finish_preparation,
    parts_of,
    prepared_name,
    start_preparation,
)
from evaluators.image_sets import ImageSet, load_image_set
from nan_merge.errors import DataError
from tests.clip_set_folders import (
    drawn,
    encoded,
    write_class_folders,
    write_original,
    write_parquet,
)

pytest.importorskip("PIL")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(prepare, "IMAGES_PER_PART", 4)
    prepare._list_once.cache_clear()


def prepared(name: str, folder: Path, staging: Path, size: int = 32) -> ImageSet:
    clip_set = CLIP_SETS[name]
    listing = list_images(clip_set, folder)
    staging.mkdir(exist_ok=True)
    start_preparation(staging, len(listing.places), size)
    for start, stop in parts_of(len(listing.places)):
        assert decode_part(CLIP_SETS[name], folder, "test", size, staging, start, stop) == []
    finish_preparation(clip_set, listing, "test", staging)
    return load_image_set(staging)


def samples(found: ImageSet) -> dict[str, tuple[int, bytes]]:
    return {
        sample: (int(label), image.tobytes())
        for sample, label, image in zip(found.sample_ids, found.labels, found.images, strict=True)
    }


@pytest.mark.parametrize("name", ["GTSRB", "SVHN", "MNIST"])
def test_samples_and_digest_are_the_same_in_every_layout(name, tmp_path):
    pytest.importorskip("scipy")
    pytest.importorskip("pyarrow")
    folders = [tmp_path / each for each in ("classes", "original", "parquet")]
    for folder in folders:
        folder.mkdir()
    write_class_folders(name, folders[0])
    write_original(name, folders[1])
    write_parquet(name, folders[2], list(CLIP_SETS[name].class_names))
    found = [prepared(name, folder, tmp_path / f"{folder.name}-done") for folder in folders]
    assert len({each.digest() for each in found}) == 1
    assert samples(found[0]) == samples(found[1]) == samples(found[2])
    assert all(id.startswith(f"{name}/test/") for id in found[0].sample_ids)


def test_pixels_are_mapped_and_those_of_each_picture(tmp_path):
    write_class_folders("EuroSAT", tmp_path / "set", per_class=3)
    found = prepared("EuroSAT", tmp_path / "set", tmp_path / "done", size=24)
    assert isinstance(found.images, np.memmap) and found.images.shape == (30, 24, 24, 3)
    listing = list_images(CLIP_SETS["EuroSAT"], tmp_path / "set")
    for image, label, place in zip(found.images, found.labels, listing.places, strict=True):
        number = int(Path(place).stem)
        assert np.array_equal(image, fit_picture(drawn("EuroSAT", int(label), number), 24))


def test_copies_of_a_picture_share_a_cluster_and_have_ids_of_their_own(tmp_path):
    write_class_folders("EuroSAT", tmp_path / "set")
    content = encoded(drawn("EuroSAT", 0))
    for label in ("river", "forest"):
        (tmp_path / "set" / "test" / label / "copy.png").write_bytes(content)
    found = prepared("EuroSAT", tmp_path / "set", tmp_path / "done")
    assert len(set(found.sample_ids)) == 12
    clusters = [clip_sample_cluster(each) for each in found.sample_ids]
    assert len(set(clusters)) == 10
    copies = [id for id in found.sample_ids if clusters.count(clip_sample_cluster(id)) == 3]
    assert sorted(id.partition("-")[2] for id in copies) == ["", "2", "3"]


def test_a_killed_preparation_goes_on_where_it_stood(tmp_path, monkeypatch):
    write_class_folders("EuroSAT", tmp_path / "set")
    whole = prepared("EuroSAT", tmp_path / "set", tmp_path / "whole")
    staging = tmp_path / "killed"
    staging.mkdir()
    start_preparation(staging, 10, 32)
    decode_part(CLIP_SETS["EuroSAT"], tmp_path / "set", "test", 32, staging, 4, 8)
    decoded: list[str] = []
    real = prepare.open_picture

    def open_and_note(content, place):
        decoded.append(place)
        return real(content, place)

    monkeypatch.setattr(prepare, "open_picture", open_and_note)
    again = prepared("EuroSAT", tmp_path / "set", staging)
    assert len(decoded) == 6
    assert again.digest() == whole.digest()
    assert (staging / "images.npy").read_bytes() == (tmp_path / "whole/images.npy").read_bytes()


def test_every_broken_image_is_named_and_its_part_is_done_again(tmp_path):
    write_class_folders("EuroSAT", tmp_path / "set")
    folder = tmp_path / "set" / "test"
    good = {each: (folder / each / "0.png").read_bytes() for each in ("forest", "river")}
    for each, content in good.items():
        (folder / each / "0.png").write_bytes(content[:200])
    staging = tmp_path / "done"
    staging.mkdir()
    start_preparation(staging, 10, 32)
    problems = decode_part(CLIP_SETS["EuroSAT"], tmp_path / "set", "test", 32, staging, 0, 10)
    assert [Path(each.partition(":")[0]).parent.name for each in problems] == ["forest", "river"]
    for each, content in good.items():
        (folder / each / "0.png").write_bytes(content)
    assert len(prepared("EuroSAT", tmp_path / "set", staging).sample_ids) == 10


def test_the_name_changes_with_the_files_and_the_size(tmp_path):
    write_class_folders("EuroSAT", tmp_path)
    clip_set = CLIP_SETS["EuroSAT"]

    def name(size: int = 32) -> str:
        return prepared_name(clip_set, list_images(clip_set, tmp_path), "test", size)

    before = name()
    assert name() == before and name(64) != before
    (tmp_path / "test" / "river" / "0.png").write_bytes(encoded(drawn("EuroSAT", 8, 1)))
    assert name() != before


def test_a_damaged_cache_says_what_to_delete(tmp_path):
    write_class_folders("EuroSAT", tmp_path / "set")
    prepared("EuroSAT", tmp_path / "set", tmp_path / "done")
    pixels = tmp_path / "done" / "images.npy"
    pixels.write_bytes(pixels.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"done is not a readable image set.*Delete it"):
        load_image_set(tmp_path / "done")
    (tmp_path / "done" / "set.json").write_text(json.dumps({"name": "EuroSAT"}))
    with pytest.raises(DataError, match="Delete it"):
        load_image_set(tmp_path / "done")
