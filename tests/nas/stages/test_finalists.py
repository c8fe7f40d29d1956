"""The end of a search: members first, whatever is left of the budget."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.planning.pace import Pace
from nas.planning.plan import FEWEST_MEMBERS, REFERENCE_SHARE, Plan
from nas.stages.finalise import finalise
from nas.stages.finalists import OVERDRAFT, SHORTEST_REFERENCE, Choice
from nas.stages.finals import Final, front_of, is_done, members_of, read_finals, record_final
from nas.study.budget import Account, Budget
from nas.study.candidates import Candidate
from nas.study.config import StudyConfig
from nas.study.folder import Study, create_study
from nas.worker.context import Context, open_context
from search_spaces.architecture import Architecture
from trainers.importing.synthetic import speak_corpus

PACE = Pace(per_clip=1e-3, per_mac=5e-11, scored=30, batch=4)
PLAN = Plan(
    distill_steps=40,
    finetune_steps=40,
    rungs=1,
    reduction=3,
    candidates=8,
    finalists=6,
    shared_steps=0,
    shared_seconds=0.0,
    search_seconds=0.0,
    final_seconds=0.0,
    tutor_steps=60,
    tutor_seconds=0.0,
)
MakeChoice = Callable[[float], Choice]


def candidate(number: int, error: float, eer: float, milliseconds: float) -> Candidate:
    architecture = Architecture(
        front_end="mel", front_width=16, frame_stride=1, width=24 + 24 * number, heads=(2,), ffn_dims=(32,), kept_layers=(1,)
    )
    scores = {"keyword_error": error, "eer": eer, "latency_ms": milliseconds}
    return Candidate(number=number, architecture=architecture, state="complete", scores=scores)


FRONT = [candidate(n, 40.0 - 4 * n, 30.0 - 2 * n, 1.0 + n) for n in range(7)]
BEATEN = candidate(7, 60.0, 40.0, 9.0)


@pytest.fixture(scope="module")
def opened(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("work")
    speak_corpus(folder / "spoken.parquet", speakers=8, clips_per_keyword=1)
    data, cache = (str(folder / "spoken.parquet"),), str(folder / "cache")
    return open_context(create_study(StudyConfig(name="one", teacher=str(teacher_folder), data=data, cache=cache), folder))


@pytest.fixture
def choice(opened: Context, tmp_path_factory: pytest.TempPathFactory) -> MakeChoice:
    """Of a new study with eight candidates and so many CPU-seconds left."""

    def make(left: float) -> Choice:
        study = create_study(opened.study.config, tmp_path_factory.mktemp("studies"))
        for one in (*FRONT, BEATEN):
            study.record(one)
        vars_of = {**vars(opened), "study": study}
        context = Context(**{name: value for name, value in vars_of.items() if name in Context.__dataclass_fields__})
        budget = Budget(resource="cpu", seconds=left)
        account = Account(budget=budget, ledger=study.ledger, resources=1.0, workers=2)
        return Choice(context=context, plan=PLAN, pace=PACE, account=account)

    return make


def study_of(choice: Choice) -> Study:
    return choice.context.study


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.floats(1.0, 3000.0))
def test_there_are_enough_members_whatever_is_left(choice: MakeChoice, left: float) -> None:
    made = choice(left)
    finals = made.wanted()
    finalists = [final for final in finals if final.role == "finalist"]
    references = [final for final in finals if final.role != "finalist"]
    assert len(finalists) >= FEWEST_MEMBERS and len(references) == 3
    trained = [final for final in finalists if not final.source]
    assert trained in (finalists, [])  # never one or two that beat what there was no time for
    if trained:
        assert {final.finetune_steps for final in trained} == {references[1].finetune_steps}
        most = REFERENCE_SHARE * left
        assert sum(map(made.seconds, trained)) + sum(min(most, made.seconds(final)) for final in references) <= left
    else:
        assert {final.finetune_steps for final in finalists} == {PLAN.finetune_steps}
    assert BEATEN.number not in {final.candidate for final in finalists} or len(finalists) == 8


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.floats(1.0, 300.0), st.floats(0.0, 1.0))
def test_what_is_left_after_members_may_be_anything(choice: MakeChoice, left: float, share: float) -> None:
    """Members were as they were trained, or longer; little, much or nothing is left for more."""
    made = choice(left)
    first = made.wanted()
    record_final(study_of(made), *(scored(final, 30.0, 20.0) for final in first))
    study_of(made).ledger.charge("finals", share * left)
    further = [final for final in made.wanted() if final.name not in {known.name for known in first}]
    assert sum(map(made.seconds, further)) <= (1 - share) * left


def test_what_was_stopped_may_be_a_finalist_but_no_member_as_it_was_trained(choice: MakeChoice) -> None:
    for left, are_trained in ((5.0, False), (30_000.0, True)):
        made = choice(left)
        for one in (*FRONT[2:], BEATEN):
            study_of(made).record(dataclasses.replace(one, state="stopped", rung=0))
        finalists = [final for final in made.wanted() if final.role == "finalist"]
        assert len(finalists) == (8 if are_trained else 2)
        assert all((final.source is None) == are_trained for final in finalists)


def test_references_are_trained_again_with_finalists_that_there_was_no_room_for(
    choice: MakeChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings turn out so cheap that finalists can be trained after all."""
    made, called = choice(10.0), list[int]()
    study = study_of(made)

    def trained(choice: Choice, wanted: Sequence[Final], tick: object) -> None:
        called.append(len(wanted))
        left = [final for final in wanted if not is_done(study, final)]
        if left:
            record_final(study, *(scored(final, 30.0 - final.finetune_steps / 100, 20.0) for final in left))
        if len(called) == 1:
            study.ledger.charge("given back", -30_000.0)

    monkeypatch.setattr("nas.stages.finalise.train_finals", trained)
    finalise(made, lambda done, total: None)
    finals = read_finals(study)
    [length] = {final.finetune_steps for final in finals if final.role == "finalist" and not final.source}
    references = [final for final in finals if final.role in ("teacher", "paper's student", "BC-ResNet")]
    assert len(references) == 3 and all(final.scores and final.finetune_steps >= length for final in references)


def test_a_long_tutor_is_the_teacher(choice: MakeChoice) -> None:
    for left, source in ((10.0, "tutor"), (30_000.0, None)):
        teacher = next(final for final in choice(left).wanted() if final.role == "teacher")
        assert teacher.source == source and teacher.finetune_steps >= PLAN.tutor_steps


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.floats(60.0, 3000.0))
def test_a_reference_is_as_short_as_what_is_left_needs(choice: MakeChoice, left: float) -> None:
    made = choice(left)
    finals = made.wanted()
    room = left * (1 + OVERDRAFT)
    for final in finals:
        begun = made.begun(final, [])
        if final.role in ("paper's student", "BC-ResNet"):
            assert begun is not None and begun.finetune_steps <= final.finetune_steps
            assert made.seconds(begun) <= room or begun.finetune_steps == SHORTEST_REFERENCE
            if begun.finetune_steps < final.finetune_steps:
                assert begun.updates < final.updates and begun in made.wanted()  # what was decided is on record


def test_what_runs_takes_its_part_of_the_room(choice: MakeChoice) -> None:
    made = choice(30.0)
    first, second = made._finalists([FRONT[0], FRONT[1]], 1000)
    record_final(study_of(made), first)
    assert made.seconds(second) < 30.0 < made.seconds(first) + made.seconds(second)
    assert made.begun(second, []) == second and made.begun(second, [(first, 1.0)]) is None
    assert made.begun(first, [(second, 1.0)]) == first  # a front cannot do without one


def scored(final: Final, error: float, eer: float) -> Final:
    scores = {"keyword_error": error, "eer": eer, "latency_ms": 2.0}
    return Final(**{**vars(final), "scores": scores})


def test_candidates_that_nothing_beats_are_members_as_they_were_trained(choice: MakeChoice) -> None:
    made = choice(3000.0)
    record_final(study_of(made), scored(made._finalists([FRONT[3]], 100)[0], 20.0, 20.0))
    asked = made.as_trained()
    assert {final.candidate for final in asked} == {0, 6}  # the others are beaten by what 3 became
    assert all(final.source == f"candidate-{final.candidate}" and final.name == f"member-{final.candidate}" for final in asked)
    tests = [made.seconds(final) for final in asked]
    assert made.tests() == pytest.approx(sum(tests)) and max(tests) < min(map(made.seconds, made._finalists(FRONT, 40)))


def test_a_finalist_without_room_is_a_member_as_it_was_trained_and_may_be_trained_on_later(choice: MakeChoice) -> None:
    made = choice(3000.0)
    first, second = made._finalists(FRONT[2:4], 100)
    record_final(study_of(made), scored(first, 90.0, 45.0), second)
    [member] = [final for final in made.as_trained() if final.candidate == FRONT[3].number]
    record_final(study_of(made), scored(member, 10.0, 30.0))
    begun = made.begun(second, [])
    assert begun == dataclasses.replace(second, read_before=True) and begun in made.wanted()


def test_no_more_is_tested_than_there_is_room_for(choice: MakeChoice) -> None:
    poor, rich = choice(10.0), choice(30_000.0)
    assert len(poor.as_trained()) == FEWEST_MEMBERS < len(rich.as_trained())
    assert sum(final.role == "finalist" for final in poor.wanted()) == FEWEST_MEMBERS


def test_a_member_that_is_trained_on_takes_its_place_and_says_that_it_was_tested(choice: MakeChoice) -> None:
    made = choice(3000.0)
    member = scored(made._members([FRONT[2]])[0], 30.0, 25.0)
    record_final(study_of(made), member)
    later = made._finalists(FRONT[2:4], 100)
    assert [final.read_before for final in later] == [True, False]
    trained = scored(later[0], 10.0, 10.0)
    assert front_of([member]) == [member] and members_of([member, later[0]]) == [member]
    assert front_of([member, trained]) == [trained]
    worse = scored(later[0], 50.0, 50.0)
    assert members_of([member, worse]) == [worse]  # its latest training is what it is


def test_a_larger_budget_trains_members_on(choice: MakeChoice) -> None:
    """Of whom the first budget reached for none; then all that it pays for, as long as one another whatever references became."""
    poor = choice(10.0)
    assert all(final.source for final in poor.wanted() if final.role == "finalist")
    rich = dataclasses.replace(poor, account=dataclasses.replace(poor.account, budget=Budget(resource="cpu", seconds=30_000.0)))
    trained = [final for final in rich.wanted() if final.role == "finalist" and not final.source]
    assert {final.candidate for final in trained} >= set(range(5))
    [length] = {final.finetune_steps for final in trained}
    assert length != PLAN.finetune_steps
    references = [final for final in rich.wanted() if final.role in ("paper's student", "BC-ResNet")]
    assert len(references) == 2 and all(final.finetune_steps >= length for final in references)
    paper = next(final for final in rich.wanted() if final.role == "paper's student")
    record_final(study_of(rich), dataclasses.replace(paper, finetune_steps=5))
    assert {final.finetune_steps for final in rich.wanted() if final.role == "finalist" and not final.source} == {length}


@pytest.mark.parametrize(
    ("field", "name"), [("name", "/tmp/elsewhere"), ("name", "../out"), ("source", "a/../../b"), ("name", "..")]
)
def test_names_of_finals_stay_in_the_study(field: str, name: str, tmp_path: Path) -> None:
    """A study that was received: files of these names are written, and taken away."""
    study = create_study(StudyConfig(name="received"), tmp_path)
    fine = Final(
        name="final-0", role="finalist", architecture=FRONT[0].architecture, start="random", distill_steps=0, finetune_steps=1
    )
    record_final(study, fine)
    assert read_finals(study) == [fine]
    record_final(study, dataclasses.replace(fine, **{field: name}))
    with pytest.raises(ValueError, match=r"finals.jsonl has a line that cannot be read: the name .* is not allowed"):
        read_finals(study)
