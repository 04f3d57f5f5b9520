"""What becomes of a model whose driver died: Ray ends the actors a driver owns, but not a Serve application.

A replica asks Ray's job table now and then whether the driver it was started for is still there, and ends its own
application when it is not. So replicas, and the GPUs under them, come free on a cluster that others share, also when
nobody resumes the run. Ray knows a driver as gone when its process has ended or its node is lost.
"""

from __future__ import annotations

import contextlib
import logging
import time

import ray
from ray import serve
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] - compiled
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from rollout.thread import threaded

LOOK_SECONDS = 20.0
"""How often a replica looks after its driver. One small question to the cluster's head."""
ASK_SECONDS = 10.0
"""What Ray may take to answer."""

log = logging.getLogger(__name__)


def this_driver() -> str:
    """The driver of this process as Ray's job table names it."""
    return ray.get_runtime_context().get_job_id()


def is_gone(driver: str) -> bool:
    """True when Ray says that the driver has ended; False when it does not know."""
    head = GcsClient(address=ray.get_runtime_context().gcs_address)
    jobs = head.get_all_job_info(
        job_or_submission_id=driver, skip_submission_job_info_field=True, skip_is_running_tasks_field=True, timeout=5
    )
    return any(job.job_id.hex() == driver and job.is_dead for job in jobs.values())


class Orphanage:
    """Looks after one replica's driver."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._looked = time.monotonic()

    async def look(self) -> None:
        """Ends the application of this replica when its driver is gone. Cheap to call often."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        with contextlib.suppress(TimeoutError):  # the head is stuck: the next look asks again
            await threaded(self._look, ASK_SECONDS, "Ray's job table")

    def _look(self) -> None:
        with contextlib.suppress(RayError, RayServeException):  # the head is busy: the next look asks again
            if is_gone(self._driver):
                name = serve.get_replica_context().app_name
                log.warning("the driver of %s is gone, and so is its model", name)
                serve.delete(name, _blocking=False)
