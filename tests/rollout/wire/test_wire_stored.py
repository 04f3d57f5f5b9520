"""Stored responses: what may be gone on from, by whom and for how long."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rollout.wire.stored import Kept, MemoryResponses, ResponseStore, SqliteResponses, conversation

Make = Callable[[Callable[[], float]], ResponseStore]


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return lambda clock: MemoryResponses(100.0, clock)
    return lambda clock: SqliteResponses(tmp_path / "responses.db", 100.0, clock=clock)


def kept(id: str, previous: str | None = None) -> Kept:
    return Kept(
        id, previous, ({"role": "user", "content": f"to {id}"}, {"role": "assistant", "content": id}), {"id": id}
    )


async def test_a_conversation_is_found_from_its_last_response_and_branches(make: Make) -> None:
    store = make(lambda: 0.0)
    for id, previous in (("a", None), ("b", "a"), ("c", "b"), ("d", "a")):
        await store.put(kept(id, previous))
    assert await store.chain("c") == (kept("a"), kept("b", "a"), kept("c", "b"))
    said = conversation(await store.chain("d"))
    assert [message["content"] for message in said] == ["to a", "a", "to d", "d"]
    assert await store.chain("none") == ()


async def test_without_one_before_it_a_response_has_no_beginning(make: Make) -> None:
    store = make(lambda: 0.0)
    await store.put(kept("a"))
    await store.put(kept("b", "a"))
    assert await store.delete("a") and not await store.delete("a")
    assert await store.chain("b") == ()


async def test_a_conversation_is_kept_while_it_goes_on_and_then_forgotten_whole(make: Make) -> None:
    now = 0.0
    store = make(lambda: now)
    await store.put(kept("a"))
    await store.put(kept("x"))
    now = 90.0
    await store.put(kept("b", "a"))
    now = 150.0
    await store.put(kept("y"))
    assert len(await store.chain("b")) == 2  # its beginning is old, the conversation is not
    assert await store.chain("x") == ()
    now = 200.0
    await store.put(kept("z"))
    assert await store.chain("b") == () and not await store.delete("a")
    assert len(await store.chain("y")) == 1


def test_processes_share_a_file(tmp_path: Path) -> None:
    """Several open a file that is not there yet, all at once, and each goes on from what another has kept."""
    path = tmp_path / "responses.db"
    program = f"""
import asyncio, sys
from pathlib import Path
from rollout.wire.stored import Kept, SqliteResponses
async def main(me):
    store = SqliteResponses(Path({str(path)!r}))
    for at in range(20):
        await store.put(Kept(f"{{me}}_{{at}}", f"{{me}}_{{at - 1}}" if at else None, (), {{}}))
    await store.close()
asyncio.run(main(sys.argv[1]))
"""
    running = [subprocess.Popen([sys.executable, "-c", program, name], stderr=subprocess.PIPE) for name in "abcd"]
    for process in running:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"")

    async def chains() -> list[int]:
        store = SqliteResponses(path)
        lengths = [len(await store.chain(f"{name}_19")) for name in "abcd"]
        await store.close()
        return lengths

    assert asyncio.run(chains()) == [20] * 4
