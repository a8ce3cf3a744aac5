"""A tiny data set on disk, drawn here: a bright square (class 1) or a dark one (class 0), with its map."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32


def draw_square(rng: np.random.Generator, label: int) -> tuple[np.ndarray, np.ndarray]:
    """An RGB image and its human map, uint8: a square somewhere, bright for class 1 and dark for class 0."""
    corner = rng.integers(0, SIZE - 10, 2)
    image = rng.integers(90, 160, (SIZE, SIZE, 3)).astype(np.uint8)
    human = np.zeros((SIZE, SIZE), np.uint8)
    square = tuple(slice(c, c + 10) for c in corner)
    image[square], human[square] = 250 if label else 5, 255
    return image, human


def write_manifest(folder: Path, train: int = 12, val: int = 8, test: int = 12, seed: int = 0) -> Path:
    """Writes images, maps and `manifest.csv`; half of the test comes from the domain "new". Every fourth has no map."""
    rng = np.random.default_rng(seed)
    for name in ("images", "maps"):
        (folder / name).mkdir(parents=True)
    rows = []
    for split, number in (("train", train), ("val", val), ("test", test)):
        for i in range(number):
            label = i % 2
            image, human = draw_square(rng, label)
            Image.fromarray(image).save(folder / f"images/{split}{i}.png")
            Image.fromarray(human).save(folder / f"maps/{split}{i}.png")
            rows.append(
                {
                    "split": split,
                    "label": ("dark", "bright")[label],
                    "image": f"images/{split}{i}.png",
                    "map": "" if i % 4 == 3 else f"maps/{split}{i}.png",
                    "domain": "new" if split == "test" and i >= test // 2 else "old",
                    "group": f"{split}{i}",
                }
            )
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path
