"""What is written down of candidates in training: their states in the study folder and in MLflow, their seconds in the ledger."""

from dataclasses import dataclass, replace

from nas.planning.admission import SPENT_ON
from nas.study.budget import Account
from nas.study.candidates import Candidate
from nas.study.folder import Study
from nas.tracking.mirror import Tracking
from nas.tracking.outage import Outage
from nas.worker.presence import Arrival
from nas.worker.unfinished import forget


@dataclass
class Running:
    """A candidate in training."""

    candidate: Candidate
    arrival: Arrival


class Records:
    """Of what runs, the latest record is here too; all else is in the study folder."""

    def __init__(self, study: Study, account: Account, tracking: Tracking) -> None:
        self.study, self.account, self.tracking, self.outage = study, account, tracking, Outage("the search")
        self.running = dict[int, Running]()

    def candidates(self, but: int | None = None) -> list[Candidate]:
        """Those in training, but one."""
        return [running.candidate for number, running in self.running.items() if number != but]

    def begin(self, candidate: Candidate, task: str) -> None:
        """task: as JSON, before Ray hears of it."""
        self.running[candidate.number] = Running(candidate, Arrival(task))
        self.study.record(candidate)

    def silent(self) -> set[str]:
        """Names of those whose worker gives no sign of life."""
        arrivals = [running.arrival for running in self.running.values()]
        return {arrival.name for arrival in arrivals if arrival.is_silent()}

    def charged(self, number: int) -> Candidate:
        """A candidate in training, its time until now paid, from when its worker began."""
        running = self.running[number]
        if running.arrival.owed() > 0:
            seconds = self.account.charge(SPENT_ON, running.arrival.pay())
            running.candidate = replace(running.candidate, seconds=running.candidate.seconds + seconds)
        return running.candidate

    def charge_all(self, interval: float = 0.0) -> None:
        """Charges those that owe `interval` seconds or more."""
        for number, running in self.running.items():
            if running.arrival.owed() >= interval:
                self.charged(number)

    def leave(self) -> None:
        """What still runs is interrupted: paid, and what it took is recorded with it."""
        for number in self.running:
            self.study.record(self.charged(number))

    def check_workers(self) -> None:
        """Raises ValueError when no worker comes for a candidate."""
        for running in self.running.values():
            running.arrival.check(self.study.config.cpus, self.study.config.gpus)

    def record(self, candidate: Candidate) -> None:
        """A new state. MLflow may be away: the report logs again what it missed."""
        run_id = self.outage.passed_over(lambda: self.tracking.log_candidate(candidate))
        candidate = replace(candidate, run_id=run_id or candidate.run_id)
        if candidate.number in self.running:
            self.running[candidate.number].candidate = candidate
        self.study.record(candidate)

    def interrupt(self, number: int) -> Candidate:
        """Its worker died and it is to go on: paid, and what it left is kept."""
        self.charged(number)
        return self.running.pop(number).candidate

    def end(self, number: int) -> Candidate:
        forget(self.study, f"candidate-{number}")
        return self.running.pop(number).candidate
