"""The sample of a pilot: where its rows lie."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from spoolama.compare.pilot import BLOCK, blocks_of


@given(st.integers(1, 5000), st.integers(0, 2000), st.integers(0, 9))
def test_blocks_lie_within_the_file_and_share_no_row(total: int, asks: int, seed: int) -> None:
    """Consecutive rows, 20 of them or all there are; as many as the answers allow, and at least one."""
    blocks = blocks_of(total, asks, seed)
    rows = [n for block in blocks for n in block]
    assert len(set(rows)) == len(rows)
    assert min(rows) >= 0
    assert max(rows) < total
    assert all(b == a + 1 for block in blocks for a, b in pairwise(block))
    assert {len(block) for block in blocks} == {min(BLOCK, total)}
    assert 1 <= len(blocks) <= max(1, asks // (2 * BLOCK))
    assert blocks == blocks_of(total, asks, seed), "a resume has the same ones"


def test_blocks_are_spread_over_the_file_and_come_in_no_order() -> None:
    """One in each fifth of the file; a pilot that ends early has not seen its beginning alone."""
    blocks = blocks_of(10_000, 200, 4)
    assert sorted(block[0] // 2000 for block in blocks) == [0, 1, 2, 3, 4]
    orders = {tuple(block[0] // 2000 for block in blocks_of(10_000, 200, seed)) for seed in range(10)}
    assert len(orders) > 5
