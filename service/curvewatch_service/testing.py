"""Stand-ins for tests of code that uses the service: no Ray, no network, no waiting."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvewatch_service.cluster import JobState, JobStatus
from curvewatch_service.errors import ClusterUnavailableError, JobRefusedError
from curvewatch_service.planning import JobRequest, Resources


@dataclass
class FakeCluster:
    """A cluster whose jobs live in memory and move only when the test says so.

    A job is PENDING once submitted. `start`, `finish` and `forget` do to it what Ray would do;
    `available = False` makes every call raise, as a cluster does that does not answer.
    """

    total: Resources = field(default_factory=lambda: Resources(cpus=4))
    """What `resources` returns."""
    available: bool = True
    """Whether the cluster answers."""
    refuse: str = ""
    """When not empty, `submit` refuses every job with this message."""
    requests: list[JobRequest] = field(default_factory=list)
    """Each job that was taken, in order; one of a known id is taken once."""
    stopped: list[str] = field(default_factory=list)
    """Submission id of each call of `stop`."""
    states: dict[str, JobState] = field(default_factory=dict)
    """Where each job is."""
    texts: dict[str, str] = field(default_factory=dict)
    """What the driver of a job printed."""
    kept: list[str] = field(default_factory=list)
    """Each job whose log was asked to be kept."""

    def submit(self, request: JobRequest) -> None:
        """Take a job, PENDING; a known one stays as it is."""
        self._answer()
        if self.refuse:
            raise JobRefusedError(self.refuse)
        if request.submission_id not in self.states:
            self.requests.append(request)
            self.states[request.submission_id] = JobState(state=JobStatus.PENDING)

    def status(self, submission_id: str) -> JobState | None:
        """Return where the test has put the job."""
        self._answer()
        return self.states.get(submission_id)

    def logs(self, submission_id: str) -> str:
        """Return the text that the test gave the job."""
        self._answer()
        return self.texts.get(submission_id, "")

    def keep_logs(self, submission_id: str) -> None:
        """Note the call; `texts` never goes away."""
        self._answer()
        self.kept.append(submission_id)

    def stop(self, submission_id: str) -> None:
        """Note the call, and end the job as Ray would."""
        self._answer()
        self.stopped.append(submission_id)
        job = self.states.get(submission_id)
        if job is not None and not job.state.ended:
            self.states[submission_id] = JobState(state=JobStatus.STOPPED)

    def resources(self) -> Resources:
        """Return `total`."""
        self._answer()
        return self.total

    def start(self, submission_id: str) -> None:
        """Let the job run."""
        self.states[submission_id] = JobState(state=JobStatus.RUNNING)

    def finish(
        self,
        submission_id: str,
        state: JobStatus = JobStatus.SUCCEEDED,
        message: str = "",
        *,
        exit_code: int | None = None,
    ) -> None:
        """End the job."""
        self.states[submission_id] = JobState(state=state, message=message, exit_code=exit_code)

    def forget(self, submission_id: str) -> None:
        """Let the cluster know nothing of the job, as after a new start of its head."""
        del self.states[submission_id]

    def _answer(self) -> None:
        if not self.available:
            raise ClusterUnavailableError("the fake cluster was told not to answer; set available = True")
