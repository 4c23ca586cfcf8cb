"""Which nodes will go soon: the notice that clouds give before they take a machine back."""

from __future__ import annotations

import time

from ray.exceptions import RayError

POLL_S = 1.0
TIMEOUT_S = 5.0


class DrainWatch:
    """Asks the cluster which nodes are being drained.

    Ray says so only through a client that is not part of its public interface: where that is missing, a
    run goes on without, and a node that goes is a node that is lost.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: of the cluster's control store, host:port.
        """
        self.unavailable: str | None = None
        self._client = None
        try:
            from ray._raylet import GcsClient  # type: ignore[attr-defined]

            client = GcsClient(address=address)
            _ = client.get_draining_nodes
        except (ImportError, AttributeError, TypeError, RayError) as error:
            self.unavailable = (
                f"this version of Ray does not say which nodes are drained ({type(error).__name__}: "
                f"{error}); work on a node that is taken away is lost and run again"
            )
        else:
            self._client = client

    def poll(self) -> dict[str, float]:
        """Return the seconds left of each node that is being drained, by id; blocks for a round trip.

        A deadline that nobody set is infinite. No answer is no news: the control store may be busy.
        """
        if self._client is None:
            return {}
        try:
            deadlines = self._client.get_draining_nodes(timeout=TIMEOUT_S)
        except (RayError, OSError, RuntimeError):
            return {}
        now_ms = time.time() * 1000
        return {
            node if isinstance(node, str) else node.hex(): _seconds_left(deadline, now_ms)
            for node, deadline in deadlines.items()
        }


def _seconds_left(deadline_ms: int, now_ms: float) -> float:
    # Ray's "no deadline" is 0 or the largest integer, by version.
    if deadline_ms <= 0 or deadline_ms >= 2**62:
        return float("inf")
    return max(0.0, (deadline_ms - now_ms) / 1000)
