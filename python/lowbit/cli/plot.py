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

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    fastest = max(row["per_second_one_thread"] for row in rows)
    sizes = [row["megabytes"] for row in rows]
    for row in rows:
        axes.scatter(
            row["megabytes"],
            100 * row["neighbours_kept"],
            s=900 * row["per_second_one_thread"] / fastest,
            c="#0b7a5c" if _ours(row) else "#8a94a3",
            alpha=0.85,
            edgecolors="white",
            linewidths=1.2,
            zorder=3,
        )
    low = min(100 * row["neighbours_kept"] for row in rows)
    # In halves and doubles: below eight bits the sizes lie close together.
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.7 * min(sizes), 1.25 * max(sizes))
    axes.set_xticks(ticks := [2**i for i in range(12) if 0.7 * min(sizes) < 2**i < 1.25 * max(sizes)], map(str, ticks))
    axes.set_ylim(low - max(3.0, 0.15 * (100 - low)), 100 + max(1.5, 0.15 * (100 - low)))
    axes.set_xlabel("whole model, MB")
    axes.set_ylabel("of the ten nearest neighbours kept, %")
    axes.set_title(title, fontsize=11.5, loc="left", pad=22)
    note = "up: truer to fp32; left: smaller; area of a mark: sentences/s on one thread"
    axes.text(0, 1.025, note, transform=axes.transAxes, fontsize=9, color="#6b7280")
    axes.grid(color="#e5e9f0", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # places the axes
    figure.set_layout_engine("none")
    _label(axes, rows, fastest)
    figure.savefig(path, dpi=160, format="png")


def _ours(row: dict[str, Any]) -> bool:
    return str(row["name"]).startswith("lowbit")


def _label(axes: Any, rows: Sequence[dict[str, Any]], fastest: float) -> None:
    """Names and speeds beside the marks, each at the nearest place that is free."""
    from matplotlib.transforms import Bbox

    pixels, taken = axes.figure.dpi / 72, []

    def radius(row: dict[str, Any]) -> float:
        return 15 * (row["per_second_one_thread"] / fastest) ** 0.5  # points

    for row in rows:
        x, y = axes.transData.transform((row["megabytes"], 100 * row["neighbours_kept"]))
        taken.append(Bbox.from_extents(*(v + s * radius(row) * pixels for s in (-1, 1) for v in (x, y))))
    for row in sorted(rows, key=_ours, reverse=True):
        text = axes.annotate(
            f"{row['name']}\n{row['per_second_one_thread']:.0f}/s",
            (row["megabytes"], 100 * row["neighbours_kept"]),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            fontweight="bold" if _ours(row) else "normal",
            color="#0b7a5c" if _ours(row) else "#3b4252",
            zorder=4,
        )
        places = [
            (radius(row) + 3 + out, side, up)
            for out in range(0, 60, 6)
            for side, up in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -0.7), (1, 0.7), (-1, -0.7), (-1, 0.7))
        ]
        for away, side, up in places:
            text.xyann = side * away, up * away
            text.set_ha({1: "left", -1: "right", 0: "center"}[side])
            text.set_va("center" if side else "bottom" if up > 0 else "top")
            box = text.get_window_extent()
            inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
