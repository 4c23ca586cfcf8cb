"""Draw the learning curves of the built-in model: `python -m benchmarks.shapes_curves`.

Reads the three .jsonl curves that the recipe writes (docs/curves holds those of the shipped model) and
writes one picture.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Return the points of one curve; a point that was written twice around a resume counts once."""
    points = [json.loads(line) for line in path.read_text().splitlines()]
    latest = {(point["step"], "clean_all" in point): point for point in points}
    return [latest[key] for key in sorted(latest)]


def draw(folder: Path, picture: Path) -> None:
    """Draw tokenizer PSNR, transformer bit loss and reward pair accuracy side by side."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 4.2))
    tokenizer = read_curve(folder / "tokenizer.jsonl")
    for scale in (4, 6, 8, 9, 10, 11, 12):
        left.plot(
            [p["step"] for p in tokenizer], [p["psnr"][scale] for p in tokenizer], label=f"scale {scale}"
        )
    left.set(title="tokenizer: PSNR of truncated decodes", xlabel="step", ylabel="dB")
    transformer = read_curve(folder / "transformer.jsonl")
    for scale in (0, 2, 5, 7, 9, 11, 12):
        middle.plot(
            [p["step"] for p in transformer],
            [p["bit_loss"][scale] for p in transformer],
            label=f"scale {scale}",
        )
    middle.set(title="transformer: loss per bit", xlabel="step", ylabel="nats")
    reward = [p for p in read_curve(folder / "reward.jsonl") if "clean_all" in p]
    for kind in ("counting", "position", "color_attr", "all"):
        right.plot([p["step"] for p in reward], [p[f"clean_{kind}"] for p in reward], marker="o", label=kind)
    right.set(title="reward: true caption beats a false one", xlabel="step", ylabel="share of pairs")
    for axis in (left, middle, right):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=90)


def main() -> None:
    """Draw the curves of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, default=Path("docs/curves"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/shapes_curves.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(options.curves, options.output)


if __name__ == "__main__":
    main()
