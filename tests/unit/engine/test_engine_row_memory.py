"""The memory that the rows in work share."""

from __future__ import annotations

import asyncio

from spoolama.engine.row_memory import RowMemory


def test_rows_wait_until_there_is_room_and_the_largest_goes_alone() -> None:
    """Rows in work never take more than the total, and a row larger than it is asked too."""

    async def run() -> tuple[list[int], int]:
        memory, inside, most = RowMemory(10), [0], [0]

        async def row(size: int) -> int:
            async with memory.of(size):
                inside[0] += min(size, 10)
                most[0] = max(most[0], inside[0])
                await asyncio.sleep(0)
                inside[0] -= min(size, 10)
            return size

        return list(await asyncio.gather(*(row(size) for size in (6, 4, 6, 25, 1, 9, 10, 3)))), most[0]

    assert asyncio.run(run()) == ([6, 4, 6, 25, 1, 9, 10, 3], 10)


def test_a_row_that_is_cancelled_gives_its_room_back() -> None:
    """Neither a row in work nor one that waits keeps room after its task was cancelled."""

    async def run() -> None:
        memory = RowMemory(10)

        async def hold() -> None:
            async with memory.of(10):
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(5), memory.of(10):
            pass

    asyncio.run(run())
