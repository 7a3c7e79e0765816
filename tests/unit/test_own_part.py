"""The part of a store that one group of ranks has for itself."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import Store, TCPStore

from curvewatch_workers.group import own_part

WAIT = dt.timedelta(seconds=20)


def client(server: TCPStore) -> TCPStore:
    return TCPStore("127.0.0.1", server.port, is_master=False, timeout=WAIT, wait_for_workers=False)


def make_server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, timeout=WAIT, wait_for_workers=False)


def parts(server: TCPStore, ranks: int) -> list[Store]:
    """Let a new group find its part."""
    with ThreadPoolExecutor(ranks) as pool:
        # The first, which answers, comes first: it finds what earlier ranks have left.
        asked = [pool.submit(own_part, client(server), rank, ranks, WAIT) for rank in range(ranks)]
        return [one.result() for one in asked]


def test_the_ranks_of_a_group_share_what_no_earlier_group_has_written() -> None:
    server = make_server()
    # One that died before it was answered.
    server.set("curvewatch/here/2", "gone")

    # One rank more, then fewer, as when a node comes and goes.
    for number, ranks in enumerate((3, 4, 2, 3)):
        group = parts(server, ranks)

        assert not any(one.check(["address"]) for one in group)
        group[0].set("address", str(number))
        assert [one.get("address") for one in group] == [str(number).encode()] * ranks


def test_a_rank_that_never_comes_is_missed_in_the_end() -> None:
    server = make_server()
    server.set("curvewatch/here/1", "gone")

    with pytest.raises(dist.DistStoreError, match=r"ranks \[1\] did not come within"):
        own_part(client(server), 0, 2, dt.timedelta(seconds=0.5))
