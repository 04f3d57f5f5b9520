"""Which replica a trip goes to.

A handle's session id is the decimal number of a slot. A router gives every replica a seat and sends slot `s` to seat
`s % seats`, so as many slots as replicas are balanced exactly, and a conversation keeps its prefix cache.

A replica keeps its seat while it lives. When one dies, only its own seat falls to the following one, until its
replacement takes the empty seat: the letters other replicas are working on stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray.serve._private.request_router.common import PendingRequest
from ray.serve._private.request_router.replica_wrapper import RunningReplica
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

Seats = tuple[str | None, ...]


class SlotRouter(ConsistentHashRouter):
    """Slot to replica. A request without a slot is hashed as the base class does it."""

    _seats: Seats = ()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Serve whenever the set of running replicas may have changed."""
        self._seats = seated(self._seats, [replica.replica_id.unique_id for replica in replicas])
        super().update_replicas(replicas)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The slot's replica and no other: a second choice would be taken whenever the first is slow to answer a
        probe, and whatever it holds for the caller would be given up."""
        slot = pending_request.metadata.session_id if pending_request is not None else ""
        if not slot.isdecimal() or pending_request is None:
            return await super().choose_replicas(candidate_replicas, pending_request)
        pending_request.routing_context.should_backoff = True
        alive = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        for name in in_order(self._seats, int(slot)):
            if name in alive:
                return [[alive[name]]]
        return [candidate_replicas]  # never empty while there are any: Serve would try again without a pause


def seated(seats: Seats, replicas: Iterable[str]) -> Seats:
    """Replicas in their seats: who had one keeps it, new ones take the empty seats first."""
    names = set(replicas)
    kept = [name if name in names else None for name in seats]
    for name in sorted(names.difference(seats)):
        if None in kept:
            kept[kept.index(None)] = name
        else:
            kept.append(name)
    return tuple(kept)


def in_order(seats: Seats, slot: int) -> Sequence[str]:
    """The replicas a slot may go to, the preferred one first."""
    start = slot % len(seats) if seats else 0
    return [name for name in (*seats[start:], *seats[:start]) if name is not None]
