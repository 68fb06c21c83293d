"""Folders of image files: images alone, or a folder per class as torchvision's ImageFolder has."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soul_deploy.base import brief, errors

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"),
        *(".tif", ".tiff", ".webp"),
    )
)
SPLITS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
"""Name of a folder, or of a .npz file, that holds a split -> the split."""
MAX_FILES = 10_000_000


@brief
@dataclass(frozen=True)
class ImageFiles:
    """Image files in order of their names, class by class.

    classes: names of the class folders, sorted; () where images stand in the folder itself.
    labels: of each file, an index into `classes`.
    """

    folder: Path
    paths: tuple[Path, ...]
    classes: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()

    def spread(self, count: int) -> "ImageFiles":
        """At most `count` of them, at equal distances, so that all classes are among them."""
        chosen = spread(len(self.paths), count)
        paths = tuple(self.paths[i] for i in chosen)
        labels = tuple(self.labels[i] for i in chosen) if self.classes else ()
        return ImageFiles(self.folder, paths, self.classes, labels)


def spread(total: int, count: int) -> Sequence[int]:
    """At most `count` of the indexes below `total`, at equal distances."""
    taken = min(total, count)
    return [i * total // taken for i in range(taken)]


def split_folders(folder: Path) -> dict[str, Path]:
    """Split -> its folder, where `folder` is divided into splits; else {}.

    Raises MissingFileError, PathKindError, and UsageError where nothing says whether `train`,
    `test` or `val` is a split or a class.
    """
    folders, images = _listed(folder)
    found = [path for path in folders if path.name.lower() in SPLITS]
    others = [path.name for path in (*folders, *images) if path not in found]
    splits = {SPLITS[path.name.lower()]: path for path in found}
    if found and (others or len(splits) < len(found) or "train" not in splits):
        names = ", ".join(path.name for path in found)
        beside = f" beside {', '.join(others[:3])}" if others else ""
        raise errors.UsageError(
            f"{folder} holds {names}{beside}. Splits are the folders train, test and val, at least "
            "train, each with a folder per class, and nothing else beside them; if one of them is "
            "a class, put all classes into one folder called train"
        )
    return splits


def list_images(folder: Path, *, is_split: bool = False) -> ImageFiles:
    """The images of one set of samples: in `folder` itself, or in a folder per class.

    is_split: it is one of `split_folders`, so that any name in it is a class's.

    Folders in a class's folder belong to the class; names that begin with a dot and files of other
    kinds are passed over. Raises MissingFileError, PathKindError; UsageError where there are none,
    and for folders that leave open what is meant.
    """
    if not is_split and split_folders(folder):
        raise errors.UsageError(
            f"{folder} is divided into splits; name the one that is meant, {folder / 'train'} for "
            f"example, or give the whole as the data set called folder, with --data_dir {folder}"
        )
    folders, images = _listed(folder)
    by_class = {path.name: _below(path) for path in folders}
    empty = [name for name, paths in by_class.items() if not paths]
    if images and len(empty) < len(folders):
        raise errors.UsageError(
            f"{folder} holds images ({images[0].name}, …) beside folders of images "
            f"({folders[0].name}, …); give the images alone, or a folder per class"
        )
    if images:
        return ImageFiles(folder, tuple(images))
    if empty or not folders:
        raise errors.UsageError(
            f"{folder / empty[0] if empty else folder} holds no images ({_kinds()}); give a folder "
            "of images, or one with a folder of images per class"
        )
    paths = [path for found in by_class.values() for path in found]
    labels = [index for index, found in enumerate(by_class.values()) for _ in found]
    return ImageFiles(folder, tuple(paths), tuple(by_class), tuple(labels))


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and images that stand in `folder`, sorted by name."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir() and path.name != "__MACOSX"]
    except FileNotFoundError as error:
        raise errors.MissingFileError(f"no folder at {folder}; check the path") from error
    except NotADirectoryError as error:
        raise errors.PathKindError(f"{folder} is not a folder; give a folder of images") from error
    except OSError as error:
        raise errors.FileFormatError(f"{folder} cannot be read ({error.strerror})") from error
    return folders, [path for path in entries if _is_image(path)]


def _below(folder: Path) -> list[Path]:
    """All images below `folder`, sorted; links to folders inside it are not followed."""
    found: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in names if _is_image(path := Path(place, name))]
        if len(found) > MAX_FILES:
            raise errors.LimitError(f"{folder} holds more than {MAX_FILES:,} images")
    return sorted(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _kinds() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
