"""The tiny data set's squares in a folder for each class, for `data.source=folders`."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_manifest import draw_square


def write_folders(
    folder: Path, each: int = 20, splits: tuple[str, ...] = ("",), maps: str = "", mark: str = "_map", seed: int = 0
) -> Path:
    """Writes `each` images for a split and class, SPLIT/CLASS/p3_0.png: two of a person, p3. Every fourth has no map.

    Maps lie beside the images with `mark` in their names, or below the folder `maps` at the images' paths. Numbers go
    on from split to split, so that no person stands in two.
    """
    rng = np.random.default_rng(seed)
    for s, split in enumerate(splits):
        for label, name in enumerate(("dark", "bright")):
            for i in range(each):
                image, human = draw_square(rng, label)
                path = Path(split, name, f"{name[0]}{(s * each + i) // 2}_{i % 2}")
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{path}.png")
                target = (Path(maps) if maps else folder) / f"{path}{mark}.png"
                if i % 4 != 3:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(human).save(target)
    return folder
