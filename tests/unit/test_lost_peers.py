"""Which errors are those of a collective whose peer has gone."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from curvewatch_workers.group import is_lost_peer


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            True,
        ),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1"), True),
        (dist.DistNetworkError("the client socket has timed out"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 2x2)"), False),
        (ConnectionError("of the user's own"), False),
    ],
)
def test_a_lost_peer_is_told_from_other_errors(error: Exception, lost: bool) -> None:
    assert is_lost_peer(error) is lost
