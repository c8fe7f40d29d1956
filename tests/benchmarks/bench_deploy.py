"""What leaves for a device: every member of a front exported in int8 and heard on streams, from the folder of its search.

    cd FOLDER; python .../tests/benchmarks/bench_deploy.py STUDY [--negatives room.wav]

For each member: what integers cost on test speakers, in points with paired intervals, and what the thresholds for the lowest rate
of false alarms that validation speech supports show on streams of test speakers. Results are in build/bench/deploy.json.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle, verify_bundle
from nas.api import EXPORTS, export, front, open_study

RESULTS = Path(__file__).parents[2] / "build/bench/deploy.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--negatives", type=Path, action="append", default=[], help="as of srlnas export")
    asked = parser.parse_args()
    study = open_study(asked.study)
    members = {}
    for member in front(study)["members"]:
        name = f"{asked.study}-{member['name']}-int8"
        made = verify_bundle(EXPORTS / name) if (EXPORTS / name).is_dir() else None  # of a run that was interrupted
        bundle = made or export(
            member["run_id"],
            name=name,
            precision="int8",
            accept_loss=True,
            negatives=asked.negatives,
            tracking_uri=study.config.tracking_uri,
        )
        members[member["name"]] = {**summary(bundle), "aliases": member["aliases"]}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"study": asked.study, "members": members}, indent=2) + "\n")
    print("\n".join(table(members)))


def summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    found, latency = manifest["int8"], manifest["latency"]
    ratio = found["latency_ratio"]
    return {
        "params": manifest["params"],
        "latency_ms": latency["milliseconds"],
        "int8": {
            "size_ratio": found["size_ratio"],
            "latency_ratio": {end: ratio[end] for end in ("value", "low", "high", "marks", "machine")},
            "accuracy_change": found["test"]["accuracy_change"],
            "eer_change": found["test"]["eer_change"],
            "loss_was_accepted": found["loss_was_accepted"],
        },
        "stream": stream(manifest),
        "voices": manifest["stream_voices"],
        "share_of_a_core": manifest["listening"]["share_of_a_core"],
        "unsupported": [entry for entry in manifest["keyword_thresholds"] if "unsupported" in entry],
    }


def stream(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the lowest rate that is supported, None where none is."""
    if not manifest["stream"]:
        return None
    shown = min(manifest["stream"], key=lambda entry: float(entry["chosen_for"]))
    [chosen] = [entry for entry in manifest["keyword_thresholds"] if entry["false_alarms_an_hour"] == shown["chosen_for"]]
    return {
        "chosen_for": shown["chosen_for"],
        "hours_of_negatives": chosen["hours_of_negatives"],
        "false_alarms_an_hour": shown["false_alarms_an_hour"],
        "misses": shown["missed"],
        "delay_ms": shown["delay_ms"],
        "hours": shown["hours"],
        "words": shown["words"],
    }


def table(members: Mapping[str, Any]) -> Iterator[str]:
    yield "| member | params | size | time | accuracy | EER | missed % | false alarms an hour | delay ms |"
    yield "| --- " * 9 + "|"
    for name, member in members.items():
        int8, heard = member["int8"], member["stream"]
        cells = [name, f"{member['params'] / 1e6:.2f} M", f"{int8['size_ratio']:.2f}", interval(int8["latency_ratio"], ".2f")]
        cells += [interval(int8[f"{kind}_change"], "+.1f") for kind in ("accuracy", "eer")]
        cells += [interval(heard["misses"], ".1f"), interval(heard["false_alarms_an_hour"], ".0f")] if heard else ["-", "-"]
        cells.append(str(heard["delay_ms"]["median"]) if heard and heard["delay_ms"] else "-")
        yield f"| {' | '.join(cells)} |"


def interval(rate: Mapping[str, float] | None, form: str) -> str:
    return f"{rate['value']:{form}} [{rate['low']:{form}}, {rate['high']:{form}}]" if rate else "-"


if __name__ == "__main__":
    main()
