"""Draws what the benchmarks found, and prints it as a table: `python benchmarks/draw.py`.

Ratios are taken within rounds, since the two of a pair ran one right after the other; the table
gives their median and range. Writes benchmarks/results/benchmarks.png.
"""

from statistics import median

from results import FOLDER, read

from tlkeras.display.plots import BLUE, DARK, ORANGE, PALE, canvas, name_lines
from tlkeras.utils.tables import text_table

FASTER = [  # bench, rival, and how many times faster tlkeras should be
    ("head", "Keras guide", 6),
    ("two_stage", "Keras guide", 2.5),
    ("progressive", "loop of fit", 1.8),
    ("step", "MultiOptimizer", None),
]
COSTS = [  # bench, rival, and how many times as long tlkeras may take
    ("step", "AdamW", 1.02),
    ("backup", "without", 1.05),
]


def ratios(bench: str, over: str, under: str) -> list[float]:
    """Seconds of one divided by seconds of the other, round by round."""
    rounds: dict[str, dict[str, float]] = {}
    for name, who, number, seconds, _ in read("pairs"):
        if name == bench:
            rounds.setdefault(number, {})[who] = float(seconds)
    return [r[over] / r[under] for r in rounds.values() if over in r and under in r]


def compared() -> tuple[list[tuple], list[tuple]]:
    """(bench, rival, goal, ratios): times faster than rivals, and times as long."""
    faster = [(*row, ratios(row[0], row[1], "tlkeras")) for row in FASTER]
    costs = [(*row, ratios(row[0], "tlkeras", row[1])) for row in COSTS]
    return [[row for row in rows if row[-1]] for rows in (faster, costs)]


def lines(bench: str) -> dict[str, list[tuple[float, float]]]:
    """(count, seconds) of each line of a bench of growth.py."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, who, count, seconds in read("growth"):
        if name == bench:
            found.setdefault(who, []).append((float(count), float(seconds)))
    return found


def draw_ratios(axis, rows: list[tuple], start: float, title: str, better: str) -> None:
    """Bars from `start` to the median, and a dot for each round."""
    digits = 3 if start else 1
    for y, (*_, found) in enumerate(rows):
        axis.plot([start, median(found)], [y, y], color=PALE, linewidth=12, solid_capstyle="butt")
        axis.plot(found, [y] * len(found), "o", color=BLUE, markersize=5, alpha=0.8)
        axis.annotate(f"{median(found):.{digits}f}", (max(found), y), (8, 0),
                      textcoords="offset points", va="center", color=BLUE)  # fmt: skip
    names = [f"{bench}\nagainst {rival}" for bench, rival, *_ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=9)
    axis.set(title=title, xlabel=better, ylim=(len(rows) - 0.3, -0.6))


def draw_costs(axis, rows: list[tuple]) -> None:
    title = "What rates per block and a backup cost"
    draw_ratios(axis, rows, 1, title, "times as long: less is better")
    axis.axvline(1, color=PALE, linewidth=1)
    everything = [value for *_, found in rows for value in found]
    axis.set_xlim(min(0.95, *everything) - 0.01, max(1.07, *everything) + 0.03)


def draw_memory(axis) -> None:
    rows = read("memory")
    for x, who in enumerate(("on disk", "in memory")):
        found = [float(row[5]) for row in rows if row[1] == who]
        axis.bar(x, median(found), 0.5, color=(BLUE, PALE)[x], edgecolor=DARK)
        axis.annotate(f"{median(found):.0f} MB", (x, median(found)), (0, 3), ha="center",
                      textcoords="offset points")  # fmt: skip
    limit, outputs = float(rows[0][3]), float(rows[0][4])
    axis.axhline(limit, color=DARK, linestyle="--", linewidth=1.5)
    axis.annotate(f"limit {limit:g} MB", (0.5, limit), (0, 3), ha="center",
                  textcoords="offset points", fontsize=8)  # fmt: skip
    axis.set_xticks((0, 1), ("FeatureCache(limit)", "all in memory"))
    axis.set(title=f"{outputs:g} MB of cached outputs", ylabel="growth of memory, MB")
    axis.set(xlim=(-0.5, 1.5))
    axis.margins(y=0.12)


def draw_lines(axis, bench: str, title: str, xlabel: str, ylabel: str) -> None:
    ends = []
    for (who, points), style, colour in zip(
        lines(bench).items(), ("o-", "s--"), (BLUE, ORANGE), strict=False
    ):
        axis.plot(*zip(*points, strict=True), style, color=colour, markersize=4)
        ends.append((points[-1][1], who, colour))
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    name_lines(axis, points[-1][0], ends)


def draw_devices(axis) -> None:
    points = lines("devices")["mirrored"]
    for x, seconds in points:
        axis.bar(x, seconds, 0.5, color=PALE, edgecolor=DARK)
        axis.annotate(f"{seconds:.2f} s", (x, seconds), (0, 3), ha="center",
                      textcoords="offset points")  # fmt: skip
    axis.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
    axis.set(title="Virtual devices on the same cores", xlabel="CPU devices, MirroredStrategy")
    axis.set(ylabel="seconds per epoch, all blocks")
    axis.margins(y=0.12)


def picture() -> None:
    faster, costs = compared()
    with canvas(2, 3, (13.5, 7)) as (figure, ((a, b, c), (d, e, f))):
        draw_ratios(
            a, faster, 0, "Speed against what is used today", "times as fast: more is better"
        )
        a.set_xlim(0, 1.2 * max(max(found) for *_, found in faster))
        draw_costs(b, costs)
        draw_memory(c)
        draw_lines(d, "images", "A head on a frozen network", "images", "seconds, two epochs")
        draw_lines(e, "blocks", "Blocks that learn", "blocks besides the head", "seconds per epoch")
        e.xaxis.get_major_locator().set_params(integer=True)
        draw_devices(f)
        figure.savefig(FOLDER / "benchmarks.png")


def table() -> str:
    faster, costs = compared()
    rows = [_row(name, rival, found, goal) for name, rival, goal, found in faster]
    rows += [_row(name, rival, found, goal, most=True) for name, rival, goal, found in costs]
    for who in ("on disk", "in memory"):
        found = [float(row[5]) for row in read("memory") if row[1] == who]
        limit = float(read("memory")[0][3])
        rows.append(_row("memory, MB", who, found, limit, most=who == "on disk", each=True))
    runs = [row for row in read("crash") if row[0] == "killed"]
    for what, column, goal in (("weights differ", 4, 1e-6), ("epochs again, a kill", 6, 1)):
        found = [float(row[column]) for row in runs]
        rows.append(_row("crash", what, found, goal, most=True, each=True))
    return text_table(rows, ("bench", "against", "median", "range", "rounds", "goal", "met"))


def _row(name: str, what: str, found: list, goal: float | None, most=False, each=False) -> tuple:
    """`each`: the goal is for every round, not for the median."""
    wanted = met = ""
    if goal is not None:
        wanted = f"at {'most' if most else 'least'} {goal:g}"
        judged = (max(found) if most else min(found)) if each else median(found)
        met = "yes" if (judged <= goal if most else judged >= goal) else "no"
    spread = f"{min(found):.4g} to {max(found):.4g}"
    return name, what, f"{median(found):.4g}", spread, len(found), wanted, met


if __name__ == "__main__":
    print(table())
    picture()
