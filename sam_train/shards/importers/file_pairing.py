"""Matching of the image and label files of a data set by name.

Folders are searched recursively; names that begin with a dot are ignored. Names from a data set's own files are checked before
use (`checked_relative_path`).
"""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from sam_train.errors import ShardError, SkipSampleError
from sam_train.shards.image_io import IMAGE_EXTENSIONS, DecodedImage, load_image
from sam_train.shards.importers.report import ImportReport


def files_by_stem(
    folder: Path, extensions: tuple[str, ...], *, suffix: str = "", report: ImportReport | None = None
) -> dict[str, Path]:
    """Return the files `folder/SUB/STEM{suffix}.ext` by "SUB/STEM", in the order of names.

    Raises ShardError if the folder does not exist, or if two files differ in extension only (as `report` says).
    """
    report = ImportReport() if report is None else report
    files: dict[str, Path] = {}
    for path in _visible_files(folder):
        if path.suffix.lower() not in extensions or not path.stem.endswith(suffix):
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix().removesuffix(suffix)
        with report.entry("image", str(path)):
            if stem in files:
                raise ShardError(f"{files[stem]} and {path.name} differ in extension only: remove one, or give --image-extension")
            files[stem] = path
    return files


def images_by_stem(folder: Path, *, suffix: str = "", extension: str = "", report: ImportReport | None = None) -> dict[str, Path]:
    """Return the images of a folder as `files_by_stem` does. Raises ShardError also if there is none."""
    extensions = (_checked_extension(extension),) if extension else IMAGE_EXTENSIONS
    images = files_by_stem(folder, extensions, suffix=suffix, report=report)
    if not images:
        raise ShardError(f"no images in {folder}: expected files ending in {' '.join(suffix + e for e in extensions)}")
    return images


def pairs_by_stem(images: Path, labels: Path, extension: str, *, what: str) -> list[tuple[str, Path, Path]]:
    """Return (name of the image relative to `images`, its path, path of its label), in the order of stems.

    Raises ShardError for an image without a label and a label without an image; `what` names the label in the message.
    """
    return PairedFolders(images, labels, what=what, extensions=(extension,)).pairs(ImportReport())


class PairedFolders:
    """A folder of images and a folder of label files, which may be the same or one in the other."""

    def __init__(
        self,
        images: Path,
        labels: Path,
        *,
        what: str,
        extensions: tuple[str, ...],
        image_suffix: str = "",
        label_suffix: str = "",
        image_extension: str = "",
    ) -> None:
        self.images, self.labels, self.what, self.extensions = images, labels, what, extensions
        self.image_suffix, self.label_suffix, self.image_extension = image_suffix, label_suffix, image_extension

    def files(self, report: ImportReport) -> tuple[dict[str, Path], dict[str, Path]]:
        """Return images and label files by stem; every other file in the folders is counted as "other_file"."""
        is_same = self.images.is_dir() and self.images.resolve() == self.labels.resolve()
        if is_same and self.image_suffix == self.label_suffix and set(self.extensions) & set(IMAGE_EXTENSIONS):
            raise ShardError(f"{self.images} holds images and labels: tell them apart by --label-suffix, such as _mask")
        labels = files_by_stem(self.labels, self.extensions, suffix=self.label_suffix, report=report)
        found = images_by_stem(self.images, suffix=self.image_suffix, extension=self.image_extension, report=report)
        taken = set(labels.values())
        inner = self.labels.resolve() if not is_same and self.labels.resolve().is_relative_to(self.images.resolve()) else None
        images = {
            stem: path
            for stem, path in found.items()
            if path not in taken and (inner is None or not path.resolve().is_relative_to(inner))
        }
        if not images:
            raise ShardError(f"no images in {self.images} besides the {self.what}s: check --image-suffix and --label-suffix")
        every = {path.resolve() for folder in (self.images, self.labels) for path in _visible_files(folder)}
        used = {path.resolve() for path in (*images.values(), *labels.values())}
        report.counts.update({"other_file": len(every - used)} if every - used else {})
        return images, labels

    def pairs(self, report: ImportReport) -> list[tuple[str, Path, Path]]:
        """Return (name of the image relative to the folder of images, its path, path of its label), in the order of stems.

        A file without its counterpart is handled as `report` says: "label_missing", "image_missing".
        """
        images, labels = self.files(report)
        for stem in sorted(images.keys() ^ labels.keys()):
            if stem in images:
                expected = f"{self.labels / stem}{self.label_suffix}{'|'.join(self.extensions)}"
                report.absent("label_missing", str(images[stem]), f"{images[stem]} has no {self.what}: expected {expected}")
            else:
                self.absent_image(stem, labels[stem], report)
        return [(self.name(path), path, labels[stem]) for stem, path in sorted(images.items()) if stem in labels]

    def absent_image(self, stem: str, label: Path, report: ImportReport) -> None:
        """Handle a label file that has no image as `report` says."""
        extensions = (self.image_extension,) if self.image_extension else IMAGE_EXTENSIONS
        endings = " ".join(self.image_suffix + extension for extension in extensions)
        message = f"{label} has no image: expected {self.images / stem} with one of {endings}"
        report.absent("image_missing", str(label), message)

    def name(self, image: Path) -> str:
        """Return the name of an image relative to the folder of images."""
        return image.relative_to(self.images).as_posix()


class ImageFolder:
    """Folder in which images are found by the names that a data set's JSON or XML gives them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path:
        """Return the path of an image; a path that does not exist if there is none.

        Names are compared ignoring the form of Unicode and case if no file has the name as it is.
        """
        path = self.folder / name
        if path.is_file():
            return path
        if self._index is None:
            self._index = {}
            for file in _visible_files(self.folder) if self.folder.is_dir() else []:
                self._index.setdefault(_folded(file.relative_to(self.folder).as_posix()), []).append(file)
        candidates = self._index.get(_folded(name), [])
        return candidates[0] if len(candidates) == 1 else path

    def relative_name(self, name: object, report: ImportReport, *, place: str) -> str:
        """Return a file name from a data set relative to this folder, with '/' between folders.

        Of an absolute path or one of Windows the longest end is used that exists in the folder, else its last component; this is
        counted as "file_name_normalised". Raises ShardError, naming `place`, if it leads out of the folder.
        """
        if isinstance(name, str) and (PureWindowsPath(name).drive or "\\" in name or name.startswith("/")):
            parts = [part for part in PureWindowsPath(name).parts if part != PureWindowsPath(name).anchor]
            if parts and ".." not in parts:
                report.counts["file_name_normalised"] += 1
                ends = ["/".join(parts[start:]) for start in range(len(parts))]
                name = next((end for end in ends if self.find(end).is_file()), ends[-1])
        return checked_relative_path(name, place=place)


def checked_relative_path(name: object, *, place: str) -> str:
    """Return a file name from a data set as a POSIX path. Raises ShardError, naming `place`, if it leads out of its folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise ShardError(f"{place}: expected a file name with '/' between folders, got {str(name)[:200]!r}")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise ShardError(f"{place}: {name[:200]!r} leads out of the folder: names must be relative, without '..'")
    return path.as_posix()


def load_image_or_raise(path: Path, *, key: str) -> DecodedImage:
    """Decode an image file to upright pixels. Raises ShardError, naming the file, if it cannot be used."""
    try:
        return load_image(path, key=key)
    except SkipSampleError as error:
        raise ShardError(f"{path}: {error}; repair the file, or remove it and its masks") from error


def _visible_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise ShardError(f"no such folder: {folder}")
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts) and path.is_file()
    ]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _checked_extension(extension: str) -> str:
    lower = extension.lower()
    if lower not in IMAGE_EXTENSIONS:
        raise ShardError(f"--image-extension is {extension!r}: expected one of {' '.join(IMAGE_EXTENSIONS)}")
    return lower
