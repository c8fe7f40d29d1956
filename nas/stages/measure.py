"""Latency and memory of what was trained at full length: the files themselves, on an idle machine or on the target over SSH."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from deploy.measure import Measurement
from nas.device.calibrate import measure_students
from nas.device.known import DEVICE_FILE, reachable, study_profile
from nas.device.profile import Profile, Taken
from nas.stages.finals import PREDICTED, Final, as_predicted, read_finals, record_final
from nas.study.budget import Account
from nas.worker.context import Context
from trainers.networks.student import load_student


def measure_finals(context: Context, account: Account) -> None:
    """Measures those that were not yet; charged. Where that cannot be, they keep what was predicted. Where a measurement surprises,
    later predictions are of a model that knows it."""
    study, profile = context.study, study_profile(context.study)
    waiting = [final for final in read_finals(study) if final.scores and PREDICTED not in final.scores]
    if not waiting or not reachable(profile, context.target):
        return
    students = {final.name: load_student(study.weights_folder(final.name)) for final in waiting}
    try:
        with study.ledger.timing("measuring finalists", account.core):
            taken = measure_students(students, context.target, profile)
    except ValueError as error:
        warnings.warn(f"finalists keep their predicted latency: {error}", stacklevel=2)
        return
    measured = [_measured(final, taken[final.name].measurement) for final in waiting]
    for final in measured:
        record_final(study, final)
    if refitted := with_surprises(profile, measured, taken):
        study.write_json(DEVICE_FILE, {**study.read_json(DEVICE_FILE), "profile": refitted.to_dict()})
        vars(context).pop("device", None)  # read anew by the next prediction


def _measured(final: Final, m: Measurement) -> Final:
    predicted = {f"predicted_{name}": value for name, value in final.scores.items() if name.startswith(("latency_", "memory_"))}
    latency = {"latency_ms": m.milliseconds, "latency_low": m.low, "latency_high": m.high}
    memory = dict.fromkeys(("memory_bytes", "memory_low", "memory_high"), float(m.peak_memory))
    scores = {**final.scores, **predicted, **latency, **memory}
    return replace(final, scores=scores, latency_kind="measured", latency_marks=m.marks)


def with_surprises(profile: Profile, finals: Sequence[Final], taken: Mapping[str, Taken]) -> Profile | None:
    """Where an undisturbed finalist lies outside its interval, the profile with all undisturbed finalists, which its models are
    fitted to next; all, since the surprising ones alone would bias it. None where there is no surprise."""
    calm = [final for final in finals if final.role == "finalist" and not final.latency_marks]
    if all(as_predicted(final.scores) for final in calm):
        return None
    return profile.with_taken([taken[final.name] for final in calm])
