"""The demo's picture: size against neighbours kept, marks by speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]


def draw(rows: Sequence[dict[str, Any]], path: Path, *, title: str) -> None:
    """Writes a PNG.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    OSError
        The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fastest = max(row["per_second_one_thread"] for row in rows)
    widest = max(row["megabytes"] for row in rows)
    for row in rows:
        x, y, speed = row["megabytes"], 100 * row["neighbours_kept"], row["per_second_one_thread"]
        ours = row["name"].startswith("lowbit")
        colour = "#0b7a5c" if ours else "#8a94a3"
        axes.scatter(x, y, s=900 * speed / fastest, c=colour, alpha=0.85, edgecolors="white", linewidths=1.2, zorder=3)
        right, reach = x > 0.8 * widest, 6 + 15 * (speed / fastest) ** 0.5  # points; 15 is the greatest radius
        axes.annotate(
            f"{row['name']}\n{speed:.0f}/s",
            (x, y),
            xytext=(-reach if right else reach, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=10,
            fontweight="bold" if ours else "normal",
            color="#0b7a5c" if ours else "#3b4252",
        )
    low = min(100 * row["neighbours_kept"] for row in rows)
    axes.set_xlim(0, 1.12 * widest)
    axes.set_ylim(low - max(3.0, 0.15 * (100 - low)), 100 + max(1.5, 0.15 * (100 - low)))
    axes.set_xlabel("whole model, MB")
    axes.set_ylabel("of the ten nearest neighbours kept, %")
    axes.set_title(title, fontsize=11.5, loc="left", pad=22)
    note = "up: truer to fp32; left: smaller; area of a mark: sentences/s on one thread"
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color="#6b7280")
    axes.grid(color="#e5e9f0", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160, format="png")
