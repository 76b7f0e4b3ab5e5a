"""The byte budget that large rows and long prompts share."""

from __future__ import annotations

import asyncio

from spoolama.answer.job_context import ByteBudget


def test_rows_wait_for_room_and_a_too_large_row_runs_alone() -> None:
    """Rows in work never exceed the budget, and a row larger than the budget is asked alone."""

    async def run() -> tuple[list[int], int]:
        memory, inside, most = ByteBudget(10, free=0), [0], [0]

        async def row(size: int) -> int:
            async with memory.hold(size):
                inside[0] += min(size, 10)
                most[0] = max(most[0], inside[0])
                await asyncio.sleep(0)
                inside[0] -= min(size, 10)
            return size

        return list(await asyncio.gather(*(row(size) for size in (6, 4, 6, 25, 1, 9, 10, 3)))), most[0]

    assert asyncio.run(run()) == ([6, 4, 6, 25, 1, 9, 10, 3], 10)


def test_a_row_that_is_cancelled_gives_its_room_back() -> None:
    """A cancelled task returns its bytes, whether its row was in work or waiting."""

    async def run() -> None:
        memory = ByteBudget(10, free=0)

        async def hold() -> None:
            async with memory.hold(10):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), memory.hold(10):
            pass

    asyncio.run(run())


def test_small_rows_never_wait() -> None:
    """A row of usual size is asked while a large row holds the whole budget."""

    async def run() -> None:
        memory = ByteBudget(10, free=3)
        async with memory.hold(25), asyncio.timeout(5), memory.hold(3), memory.hold(3):
            pass

    asyncio.run(run())
