"""A bank ledger in SQLite, one database a session: episodes that are judged by the state they leave behind."""

from __future__ import annotations

import itertools
import random
import sqlite3
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt
from rollout.errors import ToolError
from rollout.resource import Resource, Solution, tool
from rollout.trajectory import Message, Score, Task, Transcript

Cents = Annotated[int, Field(gt=0, le=10**12)]
Owner = Annotated[str, Field(min_length=1, max_length=64)]
Call = tuple[str, dict[str, Any]]

_SCHEMA = "CREATE TABLE accounts (owner TEXT PRIMARY KEY, cents INTEGER NOT NULL) WITHOUT ROWID"
_OWNERS = ("Ada", "Boris", "Chidi", "Dalia", "Emil", "Fatou", "Grete", "Hiro", "Ines", "Jonas")
_ORDERS = """The bank's accounts now: {opening}.

Do the following, in this order:
{steps}

The tools take amounts in cents. When all of it is done, say so."""


@dataclass(frozen=True, slots=True)
class Books:
    """A session: its own database in memory, and what it has to hold in the end."""

    database: sqlite3.Connection
    expected: Mapping[str, int]

    def accounts(self) -> dict[str, int]:
        """Cents by owner, in the owners' order."""
        return dict(self.database.execute("SELECT owner, cents FROM accounts ORDER BY owner"))

    def balance(self, owner: str) -> int:
        """Cents of one account. Raises ToolError when there is none."""
        row = self.database.execute("SELECT cents FROM accounts WHERE owner = ?", (owner,)).fetchone()
        if row is None:
            raise ToolError(f"{owner} has no account")
        return row[0]

    def move(self, changes: Mapping[str, int]) -> str:
        """Changes balances by so many cents, all or none. Raises ToolError for what an account cannot bear."""
        for owner, cents in changes.items():
            if self.balance(owner) + cents < 0:
                raise ToolError(f"insufficient funds: {owner} has {self.balance(owner)} cents, needs {-cents}")
        with self.database:
            for owner, cents in changes.items():
                self.database.execute("UPDATE accounts SET cents = cents + ? WHERE owner = ?", (cents, owner))
        return ", ".join(f"{owner} now has {self.balance(owner)} cents" for owner in changes)


class Ledger(Resource):
    """Carry out orders on bank accounts; scored on the accounts, never on what was said.

    Args:
        count: How many tasks; None never ends.
        orders: Orders in each task.
    """

    name = "ledger"
    instructions = "You keep a bank's ledger. Use the tools; look a balance up when you need it."
    restores = "snapshot"
    rescores = "replay"  # the accounts are judged

    def __init__(self, count: NonNegativeInt | None = None, orders: Annotated[int, Field(ge=1, le=50)] = 4) -> None:
        self.num_tasks = count
        self._orders = orders

    def tasks(self, seed: int) -> Iterator[Task]:
        for index in itertools.count() if self.num_tasks is None else range(self.num_tasks):
            yield _task(seed, index, self._orders)

    async def seed_session(self, task: Task, seed: int) -> Books:
        database = sqlite3.connect(":memory:")
        database.execute(_SCHEMA)
        database.executemany("INSERT INTO accounts VALUES (?, ?)", task.data["opening"].items())
        database.commit()
        return Books(database, task.data["expected"])

    @tool
    async def open_account(self, session: Books, owner: Owner) -> str:
        """Open an empty account.

        Args:
            owner: Whose account it will be; one account each.
        """
        try:
            with session.database:
                session.database.execute("INSERT INTO accounts VALUES (?, 0)", (owner,))
        except sqlite3.IntegrityError:
            raise ToolError(f"{owner} has an account already") from None
        return f"opened an account for {owner}"

    @tool
    async def deposit(self, session: Books, owner: Owner, cents: Cents) -> str:
        """Pay cash into an account.

        Args:
            owner: Whose account.
            cents: How much, in cents.
        """
        return session.move({owner: cents})

    @tool
    async def withdraw(self, session: Books, owner: Owner, cents: Cents) -> str:
        """Pay cash out of an account.

        Args:
            owner: Whose account.
            cents: How much, in cents; no more than the account holds.
        """
        return session.move({owner: -cents})

    @tool
    async def transfer(self, session: Books, sender: Owner, receiver: Owner, cents: Cents) -> str:
        """Move money from one account to another.

        Args:
            sender: Whose account pays.
            receiver: Whose account is paid.
            cents: How much, in cents; no more than the sender's account holds.
        """
        if sender == receiver:
            raise ToolError("sender and receiver are the same")
        return session.move({sender: -cents, receiver: cents})

    @tool
    async def balance(self, session: Books, owner: Owner) -> int:
        """The cents in one account.

        Args:
            owner: Whose account.
        """
        return session.balance(owner)

    @tool
    async def list_accounts(self, session: Books) -> dict[str, int]:
        """The cents in every account, by owner."""
        return session.accounts()

    async def verify(self, session: Books, transcript: Transcript) -> Score:
        """1.0 when the accounts are exactly as they should be, else 0.0; `accounts` is the fraction that is right."""
        found, wanted = session.accounts(), session.expected
        owners = found.keys() | wanted.keys()
        right = sum(found.get(owner) == wanted.get(owner) for owner in owners) / len(owners)
        return Score(float(found == wanted), metrics={"accounts": right})

    async def snapshot(self, session: Books) -> bytes:
        """The database as SQLite would write it to a file."""
        return zlib.compress(session.database.serialize(), level=1)

    async def restore(self, task: Task, seed: int, snapshot: bytes) -> Books:
        database = sqlite3.connect(":memory:")
        database.deserialize(zlib.decompress(snapshot))
        return Books(database, task.data["expected"])

    async def close(self, session: Books) -> None:
        session.database.close()

    def gold(self, task: Task) -> Solution:
        return Solution(tuple((name, arguments) for name, arguments in task.data["calls"]), "Done.")

    def wrong(self, task: Task) -> Solution:
        return Solution(self.gold(task).calls[:-1], "Done.")


def _task(seed: int, index: int, orders: int) -> Task:
    draw = random.Random(f"ledger/{seed}/{index}")
    owners = draw.sample(_OWNERS, len(_OWNERS))
    opening = {owner: draw.randrange(1_000, 100_000) for owner in owners[:3]}
    state, calls, steps = dict(opening), list[Call](), list[str]()
    for number in range(1, orders + 1):
        text, made = _order(draw, state, owners)
        steps.append(f"{number}. {text}")
        calls += made
    holdings = ", ".join(f"{owner} {cents} cents" for owner, cents in sorted(opening.items()))
    message: Message = {"role": "user", "content": _ORDERS.format(opening=holdings, steps="\n".join(steps))}
    data = {"opening": opening, "expected": state, "calls": [list(call) for call in calls]}
    return Task(f"ledger-{index}", (message,), data, index)


def _order(draw: random.Random, state: dict[str, int], owners: Sequence[str]) -> tuple[str, list[Call]]:
    """One order in words and as calls; `state` becomes what it leaves behind."""
    payer = draw.choice([owner for owner in state if state[owner] > 0])
    other = draw.choice([owner for owner in state if owner != payer])
    new = next((owner for owner in owners if owner not in state), other)
    kind = draw.choice(("deposit", "withdraw", "transfer", "everything", "deposit" if new == other else "open"))
    cents = state[payer] if kind == "everything" else draw.randrange(1, state[payer] + 1)
    amount = "everything" if kind == "everything" else f"${cents // 100:,}.{cents % 100:02d}"
    if kind == "open":
        state[new] = cents
        calls = [("open_account", {"owner": new}), ("deposit", {"owner": new, "cents": cents})]
        return f"Open an account for {new} and pay {amount} in.", calls
    if kind == "deposit":
        state[other] += cents
        return f"Pay {amount} into {other}'s account.", [("deposit", {"owner": other, "cents": cents})]
    state[payer] -= cents
    if kind == "withdraw" and any(state.values()):  # money has to be left for the orders that follow
        return f"Pay {amount} out of {payer}'s account.", [("withdraw", {"owner": payer, "cents": cents})]
    state[other] += cents
    return f"Move {amount} from {payer} to {other}.", [("transfer", dict(sender=payer, receiver=other, cents=cents))]
