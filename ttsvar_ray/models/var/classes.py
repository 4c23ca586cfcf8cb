"""Class names as prompts: from a text to a label."""

from __future__ import annotations

import difflib
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

from ttsvar_ray.errors import CheckpointError, InputError

SUGGESTIONS = 3


def _normal(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


class ClassNames:
    """The names of a class-conditional model's classes, each with its synonyms.

    A prompt is a class's name, or its number. Names are compared without regard to case, underscores and
    runs of blanks. A name that several classes have is refused with their numbers.
    """

    def __init__(self, names: Sequence[Sequence[str]]) -> None:
        self._names = tuple(tuple(own) for own in names)
        self._labels: dict[str, list[int]] = {}
        for label, own in enumerate(self._names):
            for name in dict.fromkeys(_normal(name) for name in own):
                self._labels.setdefault(name, []).append(label)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, label: int) -> str:
        """Return the first name of a class."""
        return self._names[label][0]

    def label(self, prompt: str) -> int:
        """Return the class that a prompt names.

        Raises:
            InputError: no class, or more than one.
        """
        text = _normal(prompt)
        if text.isdecimal():
            if int(text) < len(self):
                return int(text)
            raise InputError(
                f"prompt {prompt!r}: expected a class number from 0 to {len(self) - 1}, got {text}"
            )
        labels = self._labels.get(text, [])
        if len(labels) == 1:
            return labels[0]
        if labels:
            choices = ", ".join(f"{label} ({', '.join(self._names[label])})" for label in labels)
            raise InputError(f"prompt {prompt!r}: names {len(labels)} classes; give a number: {choices}")
        near = difflib.get_close_matches(text, self._labels, n=SUGGESTIONS)
        hint = f"; near: {', '.join(near)}" if near else ""
        raise InputError(
            f"prompt {prompt!r}: expected the name or the number of one of {len(self)} classes, got neither"
            f"{hint}"
        )

    @classmethod
    def read(cls, path: Path) -> ClassNames:
        """Read a JSON list with one list of names per class.

        Raises:
            CheckpointError: not such a file.
        """
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: no readable list of class names: {error}") from error
        fits = isinstance(names, list) and all(
            isinstance(own, list) and own and all(isinstance(name, str) for name in own) for own in names
        )
        if not fits:
            raise CheckpointError(f"{path}: expected a list with a list of names for each class")
        return cls(names)

    def write(self, path: Path) -> None:
        """Write the file that `read` reads."""
        path.write_text(json.dumps([list(own) for own in self._names], indent=0) + "\n", encoding="utf-8")


def imagenet_classes() -> ClassNames:
    """Return the 1,000 ImageNet classes in the order of the published checkpoints, with WordNet's names."""
    package = importlib.resources.files("ttsvar_ray.models.var")
    return ClassNames.read(Path(str(package)) / "imagenet_classes.json")
