"""Pictures of a front: its scores over latency, and latency as predicted against what was measured."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nas.stages.finals import PREDICTED

Member = dict[str, Any]


def plot_front(front: Mapping[str, Any], path: Path) -> Path:
    """Keyword error and EER over latency: members and references (crosses) with their intervals, each under its own number."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    shown = [(member, "o", "tab:blue") for member in front["members"]] + [(m, "x", "tab:red") for m in front["references"]]
    for axes, name, label in zip(figure.subplots(1, 2), ("keyword_error", "eer"), ("keyword error", "equal error rate")):
        for number, (member, marker, color) in enumerate(shown, 1):
            x, (y, low, high) = member["latency_ms"], _drawn(member["scores"], name, front["split"])
            bars = [[max(0.0, y - low)], [max(0.0, high - y)]]
            entry = f"{number} {_title(member)}, {member['params'] / 1e6:.2f} M"
            axes.errorbar(x, y, yerr=bars, fmt=marker, color=color, capsize=2, alpha=0.7, label=entry)
            axes.annotate(str(number), (x, y), fontsize=9, xytext=(5, 3), textcoords="offset points")
        _logarithmic(axes.xaxis, axes.set_xscale)
        axes.set(xlabel=f"latency, ms ({_where(front)})", ylabel=f"{label}, % ({front['split']})")
        axes.grid(alpha=0.3)
    if shown:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"{front['study']}{', synthetic speech' if front['synthetic'] else ''}")
    figure.savefig(path, dpi=110)
    return path


def _drawn(scores: Mapping[str, float], name: str, split: str) -> tuple[float, float, float]:
    prefix = "test_" if split == "test" else ""
    return scores[f"{prefix}{name}"], scores[f"{prefix}{name}_low"], scores[f"{prefix}{name}_high"]


def _title(member: Member) -> str:
    if member["role"] in ("finalist", "candidate"):
        return str(member["name"]) + (f" ({', '.join(member['aliases'])})" if member["aliases"] else "")
    return str(member["role"])


def plot_latency(front: Mapping[str, Any], path: Path) -> list[Path]:
    """Measured latency over the predicted one with its interval; nothing where nothing was measured."""
    shown = [member for member in [*front["members"], *front["references"]] if PREDICTED in member["scores"]]
    if not shown:
        return []
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    ends = [f(m["scores"][name] for m in shown for name in (PREDICTED, "latency_ms")) for f in (min, max)]
    axes.plot(ends, ends, color="gray", linewidth=1, label="as predicted")
    for member in shown:
        scores, color = member["scores"], "tab:blue" if member["role"] == "finalist" else "tab:red"
        x, low, high = (scores[f"predicted_latency_{end}"] for end in ("ms", "low", "high"))
        axes.errorbar(x, scores["latency_ms"], xerr=[[x - low], [high - x]], fmt="o", color=color, capsize=2, alpha=0.7)
        axes.annotate(_title(member), (x, scores["latency_ms"]), fontsize=7, xytext=(5, -8), textcoords="offset points")
    _logarithmic(axes.xaxis, axes.set_xscale)
    _logarithmic(axes.yaxis, axes.set_yscale)
    axes.set(xlabel=f"predicted, ms ({front.get('latency_kind')}, 90 % interval)", ylabel="measured, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"latency of {front['study']} on {(front.get('target') or {}).get('name')}")
    figure.savefig(path, dpi=110)
    return [path]


def _logarithmic(axis: Any, scale: Callable[[str], None]) -> None:
    scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _where(front: Mapping[str, Any]) -> str:
    kinds = dict.fromkeys(member["latency_kind"] for member in [*front["members"], *front["references"]])
    return ", ".join([str((front.get("target") or {}).get("name")), *kinds])
