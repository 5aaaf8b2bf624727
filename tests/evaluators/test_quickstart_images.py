import re

import numpy as np
import pytest

from evaluators.image_sets import ImageSet, load_image_set, save_image_set
from evaluators.quickstart_images import (
    DATA_VERSION,
    QUICKSTART_TASKS,
    load_quickstart_task,
    sample_cluster,
)
from evaluators.quickstart_images.pictures import PHOTOS, TEXTURES, read_picture
from nan_merge.errors import ConfigError, DataError

for package in ("sklearn", "skimage", "mlxtend", "matplotlib"):
    pytest.importorskip(package)

IMAGE_SIZE = 32


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def load(name, split, cache, seed=0):
    return load_quickstart_task(name, split, seed=seed, cache=cache)


def sources(image_set: ImageSet) -> set[str]:
    """Scans, fonts and picture cells that the images were made of, from the sample ids."""
    return {part for sample in image_set.sample_ids for part in sample.split("/")[3:]}


@pytest.mark.parametrize("name", QUICKSTART_TASKS)
def test_train_and_test_share_no_source(name, cache):
    train, test = load(name, "train", cache), load(name, "test", cache)
    assert sources(train) and sources(test)
    assert not sources(train) & sources(test)


@pytest.mark.parametrize("name", ["mnist", "street", "letters", "style", "texture", "photo"])
def test_splits_stay_apart_across_seeds(name, cache):
    assert not sources(load(name, "train", cache, seed=1)) & sources(load(name, "test", cache))


@pytest.mark.parametrize("name", QUICKSTART_TASKS)
def test_no_image_is_in_both_splits(name, cache):
    train, test = load(name, "train", cache), load(name, "test", cache)
    seen = {image.tobytes() for image in train.images}
    # Black sky looks the same everywhere; only flat crops may repeat.
    repeated = [image for image in test.images if image.tobytes() in seen and image.std() > 8]
    assert not repeated


@pytest.mark.parametrize("name", QUICKSTART_TASKS)
def test_sizes_and_classes(name, cache):
    task = QUICKSTART_TASKS[name]
    for split, num_images in (("train", task.num_train), ("test", 500)):
        image_set = load(name, split, cache)
        assert image_set.images.shape == (num_images, IMAGE_SIZE, IMAGE_SIZE, 3)
        counts = np.bincount(image_set.labels, minlength=len(task.class_names))
        assert counts.min() > 0.7 * num_images / len(task.class_names)


def clusters(name: str, cache) -> set[str]:
    return {sample_cluster(sample) for sample in load(name, "test", cache).sample_ids}


@pytest.mark.parametrize(
    ("sample_id", "cluster"),
    [
        ("digits/test/00001/scan-1300", "digits scan-1300"),
        ("mnist/test/00001/scan-1300", "mnist scan-1300"),
        ("street/test/00001/scan-1300/cat-cell-2-0", "cat-cell-2-0"),
        ("photo/test/00001/cat-cell-2-0", "cat-cell-2-0"),
        ("texture/test/00001/brick-cell-0-1", "brick-cell-0-1"),
        ("letters/test/00001/cmss10", "font cmss10"),
        ("style/test/00001/cmss10", "font cmss10"),
    ],
)
def test_a_cluster_is_the_source_that_samples_share(sample_id, cluster):
    assert sample_cluster(sample_id) == cluster


def test_tasks_share_clusters_where_they_share_sources(cache):
    assert clusters("letters", cache) == clusters("style", cache)
    assert len(clusters("letters", cache)) == 7
    assert clusters("street", cache) == clusters("photo", cache)
    assert len(clusters("photo", cache)) == 4 * len(PHOTOS)
    assert len(clusters("texture", cache)) == 4 * len(TEXTURES)
    assert len(clusters("digits", cache)) == len(clusters("mnist", cache)) == 500
    apart = [clusters(name, cache) for name in ("digits", "mnist", "letters", "photo", "texture")]
    assert len(set().union(*apart)) == sum(map(len, apart))


@pytest.mark.parametrize(("table", "task"), [(TEXTURES, "texture"), (PHOTOS, "photo")])
def test_every_crop_lies_inside_its_own_cell(table, task, cache):
    """Every cell that an id names exists, and a test cell holds every test crop of its row."""
    columns: dict[str, set[str]] = {}
    for sample in load(task, "test", cache).sample_ids:
        match = re.fullmatch(r"(\w+)-cell-(\d)-(\d)", sample.split("/")[3])
        assert match and match[1] in table
        columns.setdefault(match[2], set()).add(match[3])
    assert all(len(each) == 1 for each in columns.values())
    assert all(min(read_picture(*file).shape[:2]) // 4 >= IMAGE_SIZE for file in table.values())


def test_same_seed_gives_the_same_pixels(cache, tmp_path):
    for name in ("street", "letters", "texture"):
        again = load(name, "test", tmp_path)
        assert again.digest() == load(name, "test", cache).digest()


def test_another_seed_gives_other_pixels(cache):
    assert (
        load("letters", "test", cache, seed=1).digest() != load("letters", "test", cache).digest()
    )


def test_a_damaged_cache_is_rebuilt(tmp_path):
    first = load("digits", "test", tmp_path)
    path = tmp_path / f"digits-test-seed0-v{DATA_VERSION}.npz"
    path.write_bytes(path.read_bytes()[:1000])
    assert load("digits", "test", tmp_path).digest() == first.digest()
    assert load_image_set(path).digest() == first.digest()


def test_a_saved_set_comes_back_whole(cache, tmp_path):
    image_set = load("style", "test", cache)
    save_image_set(image_set, tmp_path / "set.npz")
    loaded = load_image_set(tmp_path / "set.npz")
    assert loaded.digest() == image_set.digest()
    assert loaded.sample_ids == image_set.sample_ids
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_unknown_tasks_are_listed(tmp_path):
    with pytest.raises(ConfigError, match=r"'mnst'.*'mnist'"):
        load("mnst", "test", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "images must be uint8"),
        ({"labels": np.zeros(3, np.int64)}, "labels must be int64"),
        ({"labels": np.array([0, 2])}, "labels reach 2"),
        ({"sample_ids": ("a", "a")}, "different sample ids"),
        ({"templates": ("no place",)}, "every template"),
    ],
)
def test_parts_must_fit_each_other(change, message):
    parts = {
        "name": "toy",
        "split": "test",
        "images": np.zeros((2, 4, 4, 3), np.uint8),
        "labels": np.array([0, 1]),
        "sample_ids": ("a", "b"),
        "class_names": ("zero", "one"),
        "templates": ("a {}.",),
    }
    with pytest.raises(DataError, match=message):
        ImageSet(**{**parts, **change})
