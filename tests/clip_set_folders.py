"""Small drawn copies of the eight CLIP sets, in each layout in which people have them."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from evaluators.clip_sets import CLIP_SETS

RESIZED = {"SVHN": 32, "MNIST": 28}  # whose images are one array


def drawn(name: str, label: int, number: int = 0) -> Image.Image:
    """A picture of its own for each set, class and number; grey in MNIST."""
    rng = np.random.default_rng([list(CLIP_SETS).index(name), label, number])
    side = RESIZED.get(name)
    shape = (side, side) if side else (30, 40)
    if name != "MNIST":
        shape = (*shape, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def folder_names(name: str) -> list[str]:
    """What copies of a set call its classes."""
    names = CLIP_SETS[name].class_names
    if name == "SUN397":
        return [f"{each[0]}_{each.replace(' ', '_')}" for each in names]
    if name == "GTSRB":
        return [f"{label:05d}" for label in range(len(names))]
    if name == "Cars":
        return [each.replace("/", "-") for each in names]
    return [each.replace(" ", "_") for each in names]


def write_class_folders(name: str, root: Path, per_class: int = 1, split: str = "test") -> None:
    for label, folder in enumerate(folder_names(name)):
        (root / split / folder).mkdir(parents=True)
        for number in range(per_class):
            picture = drawn(name, label, number)
            (root / split / folder / f"{number}.png").write_bytes(encoded(picture))


def write_parquet(
    name: str, root: Path, names: list[str] | None = None, order: list[int] | None = None
) -> Path:
    """One image a class as on the hub; ``names`` of the data's own class numbers, in ``order``."""
    import pyarrow as pa
    from pyarrow import parquet

    order = order or list(range(len(CLIP_SETS[name].class_names)))
    rows = [{"bytes": encoded(drawn(name, label)), "path": None} for label in order]
    table = pa.table({"image": rows, "label": list(range(len(order)))})
    if names is not None:
        feature = {"names": [names[label] for label in order], "_type": "ClassLabel"}
        info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path = root / CLIP_SETS[name].parquet.format(split="test").replace("*", "00000-of-00001")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=7)
    return path


def write_original(name: str, root: Path) -> None:
    """One image a class, as the set's authors publish it."""
    {
        "SUN397": _sun397,
        "Cars": _cars,
        "RESISC45": _resisc45,
        "EuroSAT": lambda root: write_class_folders("EuroSAT", root / "EuroSAT_splits"),
        "SVHN": _svhn,
        "GTSRB": _gtsrb,
        "MNIST": _mnist,
        "DTD": _dtd,
    }[name](root)


def _save(path: Path, name: str, label: int, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(drawn(name, label), kind))  # PNG under .jpg: nothing is lost


def _listed(root: Path, name: str, lists: Path, paths: list[str], images: Path) -> None:
    lists.parent.mkdir(parents=True, exist_ok=True)
    lists.write_text("".join(f"{path}\n" for path in paths))
    for label, path in enumerate(paths):
        _save(images / path.strip("/"), name, label)


def _sun397(root: Path) -> None:
    # Two classes lie in folders of folders: /a/apartment_building/outdoor.
    folders = [
        f"/{each[0]}/{each.replace(' ', '_').replace('_outdoor', '/outdoor')}"
        for each in CLIP_SETS["SUN397"].class_names
    ]
    paths = [f"{folder}/sun_{label:03d}.jpg" for label, folder in enumerate(folders)]
    _listed(root, "SUN397", root / "Testing_01.txt", paths, root / "SUN397")


def _dtd(root: Path) -> None:
    paths = [f"{each}/{each}_0001.jpg" for each in CLIP_SETS["DTD"].class_names]
    _listed(root, "DTD", root / "dtd" / "labels" / "test1.txt", paths, root / "dtd" / "images")


def _resisc45(root: Path) -> None:
    names = folder_names("RESISC45")
    (root / "NWPU-RESISC45").mkdir()
    (root / "resisc45-test.txt").write_text("".join(f"{each}_001.jpg\n" for each in names))
    for label, each in enumerate(names):
        _save(root / "NWPU-RESISC45" / each / f"{each}_001.jpg", "RESISC45", label)


def _gtsrb(root: Path) -> None:
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        lines.append(f"{label:05d}.ppm;40;30;1;1;39;29;{label}")
        _save(root / "GTSRB" / "Final_Test" / "Images" / f"{label:05d}.ppm", "GTSRB", label, "PPM")
    (root / "GT-final_test.csv").write_text("\r\n".join(lines) + "\r\n")


def _cars(root: Path) -> None:
    from scipy.io import savemat

    names = CLIP_SETS["Cars"].class_names
    (root / "devkit").mkdir()
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": np.array(names, object)[None]})
    kinds = [("class", object), ("fname", object)]
    entries = np.array([[(i + 1, f"{i + 1:05d}.jpg") for i in range(len(names))]], dtype=kinds)
    savemat(root / "cars_test_annos_withlabels.mat", {"annotations": entries})
    for label in range(len(names)):
        _save(root / "cars_test" / f"{label + 1:05d}.jpg", "Cars", label)


def _svhn(root: Path) -> None:
    from scipy.io import savemat

    images = np.stack([np.asarray(drawn("SVHN", label)) for label in range(10)], axis=3)
    labels = np.array([[10], *([each] for each in range(1, 10))], np.uint8)  # 10 stands for 0
    savemat(root / "test_32x32.mat", {"X": images, "y": labels})


def _mnist(root: Path) -> None:
    images = np.stack([np.asarray(drawn("MNIST", label)) for label in range(10)])
    header = b"\0\0\x08\x03" + np.array([10, 28, 28], ">i4").tobytes()
    labels = b"\0\0\x08\x01" + np.array([10], ">i4").tobytes() + bytes(range(10))
    (root / "raw").mkdir()
    (root / "raw" / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(header + images.tobytes())
    )
    (root / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
