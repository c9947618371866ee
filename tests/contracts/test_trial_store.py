"""What every TrialStore promises, run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces.space import SpaceSpec
from server.store import SqlTrialStore, sqlite_url
from tuner.errors import JobError, TrialError
from tuner.job import Budget, Constraint, DataRef, DataSpec, JobSpec
from tuner.results import Interval, Measurement, TrialFailure, TrialResult, TrialState, Verdict
from tuner.store import ALLOWED, RESUMABLE, InMemoryTrialStore, JobState, TrialStore

START = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
SPEC = JobSpec(
    name="r 1",
    model="/modèles/réseau.onnx",
    data=DataSpec(validation=DataRef(file="v.npz", rows=(0, 5000)), holdout=DataRef(file="h.npz")),
    constraints=(Constraint(metric="top1", max_drop=0.01, relative=True, confidence=0.95), Constraint(metric="size_bytes", at_most=3e5)),
    space=SpaceSpec(activations=("u8", "s16"), accelerated_only=True),
    budget=Budget(trials=7, memory_gb=0.1),
)
WAYS = {
    JobState.QUEUED: (),
    JobState.RUNNING: (JobState.RUNNING,),
    **{state: (JobState.RUNNING, state) for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.INTERRUPTED)},
}


class Ticking:
    """A clock that is one second later at every look."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self) -> datetime:
        self.looks += 1
        return START + timedelta(seconds=self.looks)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TrialStore]:
    made: TrialStore
    if request.param == "memory":
        made = InMemoryTrialStore(Ticking())
    else:
        url = sqlite_url(tmp_path / "s.db") if request.param == "sqlite" else request.getfixturevalue("postgres_url")
        made = SqlTrialStore(url, Ticking())
    made.create_job("j", SPEC)
    yield made
    made.close()


def trial(number: int, state: TrialState = TrialState.COMPLETE, **fields: object) -> TrialResult:
    return TrialResult.model_validate({"number": number, "state": state, "assignment": {"conv1": "float"}, "plan_digest": "d", **fields})


def test_a_new_job_is_queued_and_comes_back_whole(store: TrialStore) -> None:
    record = store.job("j")
    assert (record.job_id, record.spec, record.state) == ("j", SPEC, JobState.QUEUED)
    assert (record.seconds, record.cancel_requested) == (0.0, False)
    assert record.created == record.updated == START + timedelta(seconds=1)
    assert record.created.tzinfo is UTC


def test_creating_the_same_job_again_changes_nothing(store: TrialStore) -> None:
    store.set_job_state("j", JobState.RUNNING, seconds=3.0)
    store.save_trial("j", trial(0))
    before = store.job("j")
    store.create_job("j", SPEC.model_copy())
    assert store.job("j") == before
    assert len(list(store.trials("j"))) == 1


def test_another_spec_under_the_same_id_is_refused(store: TrialStore) -> None:
    other = SPEC.model_copy(update={"seed": 5, "budget": Budget(trials=8)})
    with pytest.raises(JobError) as caught:
        store.create_job("j", other)
    assert str(caught.value) == (
        "job 'j' is already stored with another budget, seed. A stored job never changes: "
        "take another --out to start a new one, or put the job file back as it was and go on with --resume."
    )
    assert store.job("j").spec == SPEC


@pytest.mark.parametrize("start", list(JobState))
@pytest.mark.parametrize("end", list(JobState))
def test_a_job_moves_only_as_the_table_says(store: TrialStore, start: JobState, end: JobState) -> None:
    for state in WAYS[start]:
        store.set_job_state("j", state)
    if end in ALLOWED[start]:
        store.set_job_state("j", end)
        assert store.job("j").state == end
        return
    with pytest.raises(JobError, match=f"job 'j' is {start} and cannot become {end}"):
        store.set_job_state("j", end)
    assert store.job("j").state == start


def test_the_table_lets_stopped_jobs_go_on_and_finished_ones_rest() -> None:
    assert {state for state in JobState if JobState.RUNNING in ALLOWED[state]} == set(JobState) - {JobState.SUCCEEDED}
    assert ALLOWED[JobState.SUCCEEDED] == ()
    assert {state for state in JobState if JobState.QUEUED in ALLOWED[state]} == set(RESUMABLE)


def test_a_forbidden_move_names_both_states_and_what_is_allowed(store: TrialStore) -> None:
    with pytest.raises(JobError) as caught:
        store.set_job_state("j", JobState.SUCCEEDED)
    assert str(caught.value) == "job 'j' is queued and cannot become succeeded. What may follow queued: running, cancelled, failed."
    for state in WAYS[JobState.SUCCEEDED]:
        store.set_job_state("j", state)
    with pytest.raises(JobError, match="What may follow succeeded: nothing: start a new job"):
        store.set_job_state("j", JobState.RUNNING)


def test_seconds_are_kept_until_new_ones_are_given(store: TrialStore) -> None:
    store.set_job_state("j", JobState.RUNNING)
    store.set_job_state("j", JobState.RUNNING, seconds=1.5)
    store.set_job_state("j", JobState.INTERRUPTED)
    assert store.job("j").seconds == 1.5
    store.set_job_state("j", JobState.RUNNING, seconds=0.0)
    assert store.job("j").seconds == 0.0


def test_updated_follows_the_clock_and_created_stays(store: TrialStore) -> None:
    store.set_job_state("j", JobState.RUNNING)
    first = store.job("j")
    store.request_cancel("j")
    second = store.job("j")
    assert (first.updated - first.created, second.updated - second.created) == (timedelta(seconds=1), timedelta(seconds=2))
    assert second.created == first.created


def test_a_request_to_cancel_stands_until_the_job_is_resumed(store: TrialStore) -> None:
    assert store.cancel_requested("j") is False
    store.request_cancel("j")
    store.set_job_state("j", JobState.RUNNING)
    assert store.cancel_requested("j") is True
    store.set_job_state("j", JobState.CANCELLED)
    assert store.job("j").cancel_requested is True
    store.set_job_state("j", JobState.RUNNING)
    assert store.cancel_requested("j") is False


def test_trials_come_by_number_however_they_were_saved(store: TrialStore) -> None:
    numbers = [*range(250, 500), 3, *range(4, 250), 0, 2, 1]
    for number in numbers:
        store.save_trial("j", trial(number, plan_digest=f"d{number}"))
    assert [t.plan_digest for t in store.trials("j")] == [f"d{number}" for number in range(500)]


def test_no_trials_is_an_empty_history(store: TrialStore) -> None:
    assert list(store.trials("j")) == []


def test_trials_may_be_saved_while_others_are_read(store: TrialStore) -> None:
    for number in range(3):
        store.save_trial("j", trial(number))
    for seen in store.trials("j"):
        store.save_trial("j", trial(seen.number + 1000))
    assert [t.number for t in store.trials("j")] == [0, 1, 2, 1000, 1001, 1002]


def test_a_running_trial_is_replaced_by_its_finished_form(store: TrialStore) -> None:
    store.save_trial("j", trial(4, TrialState.RUNNING))
    done = trial(4, measurements={"top1": Measurement(metric="top1", value=0.9)}, notes=("conv1 stayed in float",))
    store.save_trial("j", done)
    assert list(store.trials("j")) == [done]
    assert store.trial("j", 4) == done


@pytest.mark.parametrize("end", [state for state in ALLOWED[JobState.RUNNING] if state != JobState.RUNNING])
def test_trials_left_running_wait_to_be_run_again(store: TrialStore, end: JobState) -> None:
    store.create_job("other", SPEC)
    for job in ("j", "other"):
        store.set_job_state(job, JobState.RUNNING)
        store.save_trial(job, trial(0))
        store.save_trial(job, trial(1, TrialState.RUNNING, notes=("größer",), attempt=3))
    store.set_job_state("j", JobState.RUNNING, seconds=1.0)
    assert store.trial("j", 1).state == TrialState.RUNNING
    store.set_job_state("j", end)
    assert list(store.trials("j")) == [trial(0), trial(1, TrialState.QUEUED, notes=("größer",), attempt=3)]
    assert [t.state for t in store.trials("other")] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_jobs_do_not_see_each_others_trials(store: TrialStore) -> None:
    store.create_job("other", SPEC)
    store.save_trial("other", trial(0, plan_digest="other"))
    store.save_trial("j", trial(0, plan_digest="mine"))
    assert [t.plan_digest for t in store.trials("j")] == ["mine"]
    assert store.trial("other", 0).plan_digest == "other"


def test_changing_what_was_saved_or_read_does_not_change_the_store(store: TrialStore) -> None:
    given_trial = trial(0)
    store.save_trial("j", given_trial)
    given_trial.assignment["conv1"] = "changed"
    store.trial("j", 0).assignment["conv1"] = "changed"
    assert store.trial("j", 0).assignment == {"conv1": "float"}


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.job("nope"),
        lambda store: store.set_job_state("nope", JobState.RUNNING),
        lambda store: store.request_cancel("nope"),
        lambda store: store.cancel_requested("nope"),
        lambda store: store.save_trial("nope", trial(0)),
        lambda store: store.trials("nope"),
        lambda store: store.trial("nope", 0),
    ],
    ids=["job", "set_job_state", "request_cancel", "cancel_requested", "save_trial", "trials", "trial"],
)
def test_an_unknown_job_is_named_at_once(store: TrialStore, use: Callable[[TrialStore], object]) -> None:
    with pytest.raises(JobError) as caught:
        use(store)
    assert str(caught.value) == "job 'nope' is not in this store; check the id and that --out is the folder the job was started with"


def test_an_unknown_trial_is_named(store: TrialStore) -> None:
    with pytest.raises(JobError, match=r"job 'j' has no trial 7; the numbers there are stand in the first column of trials\.csv"):
        store.trial("j", 7)


def test_two_threads_lose_nothing(store: TrialStore) -> None:
    def write(first: int) -> None:
        for number in range(first, 80, 2):
            store.save_trial("j", trial(number, TrialState.RUNNING))
            store.save_trial("j", trial(number, plan_digest=f"d{number}"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, (0, 1)))
    assert [(t.state, t.plan_digest) for t in store.trials("j")] == [(TrialState.COMPLETE, f"d{number}") for number in range(80)]


def test_of_two_threads_that_end_a_job_one_wins(store: TrialStore) -> None:
    store.set_job_state("j", JobState.RUNNING)

    def end(state: JobState) -> bool:
        with suppress(JobError):
            store.set_job_state("j", state)
            return True
        return False

    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(end, (JobState.SUCCEEDED, JobState.FAILED)))
    assert sorted(won) == [False, True]
    assert store.job("j").state == (JobState.SUCCEEDED if won[0] else JobState.FAILED)


def test_text_that_is_no_unicode_is_a_broken_trial(store: TrialStore) -> None:
    broken = trial(3, TrialState.FAILED, error=TrialFailure(type="E", message="no such file: x", step="load"))
    assert broken.error is not None
    broken = broken.model_copy(update={"error": broken.error.model_copy(update={"message": "no such file: \udcff"})})
    with pytest.raises(TrialError, match=r"trial 3 of job 'j' cannot be stored: .*surrogates") as caught:
        store.save_trial("j", broken)
    assert caught.value.step == "record"
    assert list(store.trials("j")) == []


def test_a_number_that_is_not_finite_never_spoils_the_history(store: TrialStore) -> None:
    store.save_trial("j", trial(0))
    with suppress(TrialError):
        store.save_trial("j", trial(1, measurements={"loss": Measurement(metric="loss", value=float("inf"))}))
    assert [t.value("loss") for t in store.trials("j")] in ([None], [None, float("inf")])


numbers = st.floats(allow_nan=False, allow_infinity=False)
seconds = st.floats(0, 1e9)
verdicts = st.builds(
    Verdict,
    metric=st.text(),
    drop=numbers,
    lower=numbers,
    upper=numbers,
    confidence=numbers,
    decision=st.sampled_from(["met", "missed", "undecided"]),
    violation=numbers,
    split=st.sampled_from(["validation", "holdout"]),
    samples=st.integers(0, 10**9),
    rule=st.text(),
)
measurements = st.builds(
    Measurement,
    metric=st.text(),
    value=numbers,
    unit=st.text(),
    direction=st.sampled_from(["higher", "lower"]),
    stderr=st.none() | numbers,
    samples=st.integers(0, 10**9),
)
trials = st.builds(
    TrialResult,
    number=st.integers(0, 10**6),
    state=st.sampled_from(TrialState),
    assignment=st.dictionaries(st.text(), st.text() | st.integers(-(2**63), 2**63) | numbers | st.booleans(), max_size=4),
    plan_digest=st.text(),
    measurements=st.dictionaries(st.text() | st.just("size_bytes"), measurements, max_size=3),
    verdicts=st.lists(verdicts, max_size=2).map(tuple),
    speedup=st.none() | st.builds(Interval, value=numbers, lower=numbers, upper=numbers, confidence=numbers),
    notes=st.lists(st.text(), max_size=2).map(tuple),
    error=st.none() | st.builds(TrialFailure, type=st.text(), message=st.text(), step=st.text()),
    artefact=st.none() | st.text(),
    timings=st.dictionaries(st.text(), seconds, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(saved=trials)
def test_a_trial_comes_back_as_it_was(store: TrialStore, saved: TrialResult) -> None:
    store.save_trial("j", saved)
    read = store.trial("j", saved.number)
    assert read == saved
    # Equality would take 1 for 1.0 or True.
    assert {name: type(value) for name, value in read.assignment.items()} == {name: type(value) for name, value in saved.assignment.items()}


def test_job_ids_are_listed_in_the_order_of_their_creation(store: TrialStore) -> None:
    spec = store.job(store.job_ids()[0]).spec
    known = store.job_ids()
    store.create_job("zz-later", spec)
    assert store.job_ids() == [*known, "zz-later"]
