"""Tasks without end: every epoch gives all of them, in an order of its own."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace

from rollout.config import TasksConfig
from rollout.resource import Resource
from rollout.tasks import read_tasks
from rollout.trajectory import Task

SHUFFLED = 1024
"""Tasks that are read ahead and put into a random order: the whole of a small source, blocks of a large or endless
one, so that memory does not follow its size."""


def epochs(config: TasksConfig, resource: Resource, seed: int) -> Iterator[Task]:
    """A job's tasks again and again, numbered on: (task, epoch) is one group. Equal seeds give equal orders.

    Ends only for a source that gives nothing. Raises as `read_tasks` does.
    """
    numbers = itertools.count()
    for epoch in itertools.count():
        tasks, empty = read_tasks(config, resource, seed), True
        for block in itertools.count():
            part = list(itertools.islice(tasks, SHUFFLED))
            if not part:
                break
            empty = False
            random.Random(f"{seed}/{epoch}/{block}").shuffle(part)
            yield from (replace(task, index=next(numbers)) for task in part)
        if empty:
            return
