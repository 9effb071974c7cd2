"""Folders of images, read where they are taken."""

import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subtune_jax.data.batches import Dataset
from subtune_jax.data.crops import resized
from subtune_jax.data.image_files import (
    image_size,
    other_pictures,
    read_each,
    read_image,
    suffixes,
)
from subtune_jax.errors import InputError, listed, require_names, require_path, unknown

# What systems and tools put beside files; names that begin with a dot are theirs too.
SYSTEM = ("@eaDir", "__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini", "lost+found")
PARTS = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev|eval(uation)?|tests?|testing|holdout)"
    r"([ _-]?(set|data|images|split))?"
)
LAYOUT = "CLASS/FILE or CLASS/GROUP/FILE"


@dataclass(frozen=True)
class LazyImages:
    """Images as an array that is read where it is indexed.

    `images[index]` with an integer array or a slice returns uint8[n, h, w, c]: `read(i)`
    for the rows i, resized to `size` pixels a side if that is given. Raises `InputError`
    that names all of them that cannot be read.
    """

    read: Callable[[int], np.ndarray]
    rows: np.ndarray
    size: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: np.ndarray | slice) -> np.ndarray:
        rows = (int(i) for i in self.rows[index])
        images = read_each(lambda i: resized(self.read(i), self.size), rows)
        if len({image.shape for image in images}) > 1:
            raise InputError("images of this set differ in size: they need resizing")
        return np.stack(images)

    def only(self, index: np.ndarray) -> "LazyImages":
        """Returns these rows alone; none is read."""
        return replace(self, rows=self.rows[index])


class Folder(NamedTuple):
    """Labelled images; `groups` is int32[n], an index into `group_names` (or all 0)."""

    data: Dataset
    groups: np.ndarray
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def folder(
    root: str | Path,
    size: int | None = None,
    *,
    class_names: Sequence[str] | None = None,
    group_names: Sequence[str] | None = None,
) -> Folder:
    """Returns the images of `root/CLASS/FILE` or `root/CLASS/GROUP/FILE` as RGB, read when
    they are taken.

    Files are those that `read_image` reads; hidden files and those of systems are left
    out, others with a warning that names them. Classes and groups are numbered in
    alphabetical order, or by their place in class_names and group_names: a part that lacks
    a class then keeps the numbers of the others. Raises `InputError` when there is no such
    folder, for a class without images, files that are no images or of a kind that is not
    read, a class that is none of `class_names`, and when images differ in size and no
    `size` is given.
    """
    require_path(root=root)
    root = Path(root)
    files = _images(root)
    classes, y = _numbered([file.parts[0] for file in files], class_names, "class")
    if class_names is None:
        _require_no_empty_class(root, classes)
    groups = [file.parts[1] if len(file.parts) > 1 else "" for file in files]
    names, numbers = _numbered(groups, group_names, "group")
    paths = [file.path for file in files]
    sizes = set(read_each(image_size, paths))
    if len(sizes) > 1 and size is None:
        raise InputError(
            f"images in {root} differ in size ({len(sizes)} sizes): give a size"
        )
    pixels = LazyImages(lambda i: read_image(paths[i]), np.arange(len(files)), size)
    return Folder(Dataset(pixels, y, classes), numbers, classes, names)


class _File(NamedTuple):
    """A file, and the names of the folders that it is in below the root."""

    path: Path
    parts: tuple[str, ...]


def _images(root: Path) -> list[_File]:
    """Returns the images below a root; raises `InputError` unless all are in classes, or
    all in groups of classes."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root} {what}: expected a folder of images as {LAYOUT}")
    files = list(_files(root))
    images: list[_File] = []
    others: list[_File] = []
    for file in files:
        (images if file.path.suffix.lower() in suffixes() else others).append(file)
    _require_layout(root, images)
    # Beside the classes are lists and licences; inside of them all should be images.
    _report(root, [file.path for file in others if file.parts])
    return images


def _files(folder: Path, parts: tuple[str, ...] = ()) -> Iterator[_File]:
    """Yields the files of a folder and of two levels of folders in it, links followed."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}") from None
    for entry in filter(_is_users, entries):
        if not entry.is_dir():
            yield _File(entry, parts)
        elif len(parts) < 2:
            # macOS writes accents as characters of their own, Linux does not.
            name = unicodedata.normalize("NFC", entry.name)
            yield from _files(entry, (*parts, name))
        else:
            raise InputError(f"{entry} is a folder in a group: expected {LAYOUT}")


def _is_users(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in SYSTEM


def _require_layout(root: Path, images: Sequence[_File]) -> None:
    tops = {file.parts[0] for file in images if file.parts}
    if tops and all(PARTS.fullmatch(name.lower()) for name in tops):
        part = root / max(tops, key=lambda name: name.lower().startswith("train"))
        raise InputError(
            f"{root} has the parts {listed(sorted(tops))}: expected the folder of one, "
            f"as {part}, with images as {LAYOUT}"
        )
    if not images:
        raise InputError(f"{root} has no images: expected them as {LAYOUT}")
    depths = Counter(len(file.parts) for file in images if file.parts)
    usual = depths.most_common(1)[0][0] if depths else 1
    odd = [str(file.path) for file in images if len(file.parts) != usual]
    if odd:
        raise InputError(
            f"images in {root} must be as {LAYOUT}, all alike: move or remove {listed(odd)}"
        )


def _report(root: Path, others: Sequence[Path]) -> None:
    """Raises `InputError` for pictures that are not read; warns of other files."""
    pictures = [str(p) for p in others if p.suffix.lower() in other_pictures()]
    if pictures:
        raise InputError(
            f"{root} has pictures of a kind that is not read: convert (to PNG or JPEG) or "
            f"remove {listed(pictures)}"
        )
    if others:
        warnings.warn(
            f"{root} has files that are no images, which are left out: "
            f"{listed(map(str, others))}",
            stacklevel=4,
        )


def _numbered(
    names: Sequence[str], expected: Sequence[str] | None, kind: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns distinct names, and int32 numbers by them; raises `InputError` for a name
    that is not an expected one."""
    distinct = tuple(sorted(set(names)))
    if expected is not None:
        require_names(**{f"{kind}_names": expected})
        every = tuple(unicodedata.normalize("NFC", name) for name in expected)
        wrong = [name for name in distinct if name not in every]
        if wrong:
            raise unknown(kind, wrong[0], every)
        distinct = every
    number = {name: i for i, name in enumerate(distinct)}
    return distinct, np.array([number[name] for name in names], np.int32)


def _require_no_empty_class(root: Path, classes: Sequence[str]) -> None:
    folders = [path for path in root.iterdir() if path.is_dir() and _is_users(path)]
    names = {unicodedata.normalize("NFC", path.name) for path in folders}
    empty = sorted(names - set(classes))
    if empty:
        raise InputError(
            f"{root} has classes without images: {listed(empty)}; remove their folders, "
            "or give class_names="
        )
