"""What a person reads in MLflow of a study and of its models: descriptions in Markdown, and a few tags."""

from collections.abc import Mapping
from typing import Any

from nas.report.front import Member
from nas.report.page import card, export_command

Front = Mapping[str, Any]


def study_description(front: Front, page_link: str, members_link: str) -> str:
    """Of the experiment, its search's run and its registered model."""
    knee = next((member for member in front["members"] if {"knee", "tuned"} & set(member["aliases"])), None)
    lines = [
        f"**[Pick a model from the front]({page_link})** or look at [its members' runs]({members_link}).",
        f"{len(front['members'])} {'members' if front['stage'] == 'final' else 'candidates'} on the front; "
        f"teacher {front['teacher']}; target {(front.get('target') or {}).get('name')}; budget {front['budget']}"
        f"{'; synthetic speech' if front['synthetic'] else ''}.",
    ]
    if knee and (command := export_command(front, knee)):
        lines += [f"The {knee['aliases'][0]}: {in_a_line(front, knee)}.", f"`{command}`"]
    return "\n\n".join(lines)


def model_description(front: Front, member: Member, page_link: str) -> str:
    """Of a version: what it is, its scores, its latency, the command that exports it."""
    facts = [f"- {name}: {text}" if name else f"  {text}" for name, text in card(front, member)]
    command = f"`{export_command(front, member)}`"
    spoken = " Scores are of synthetic speech." if front["synthetic"] else ""
    first = f"{member['name']}: {in_a_line(front, member)}.{spoken}"
    return "\n".join([first, "", command, "", *facts, "", f"[The front]({page_link})"])


def in_a_line(front: Front, member: Member) -> str:
    told = version_tags(front, member)
    return f"{told['accuracy']} accuracy, {told['eer']} EER, {told['latency']}, {told['params']} params"


def version_tags(front: Front, member: Member) -> dict[str, str]:
    """What a list of versions shows of each, rounded and with units. With the model's id they are eight at most."""
    facts = dict(card(front, member))
    return {
        "accuracy": f"{facts['accuracy, %']} %",
        "eer": f"{facts['EER, %']} %",
        "latency": f"{member['latency_ms']:.2f} ms, {member['latency_kind']} on {(front.get('target') or {}).get('name')}",
        "params": f"{member['params'] / 1e6:.2f} M",
        **({"memory": f"{member['scores']['memory_bytes'] / 1e6:.0f} MB"} if "memory_bytes" in member["scores"] else {}),
        **({"synthetic": "True"} if front["synthetic"] else {}),
        **({"tuned_from": front["tuned_from"]["model"]} if "tuned_from" in front else {}),
    }
