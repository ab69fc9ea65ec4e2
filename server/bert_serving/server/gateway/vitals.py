"""Shows the state of a gateway process in its metrics: how late its event loop is, and what it holds."""

from __future__ import annotations

import asyncio

from .http_protocol import ConnectionPool
from .memory import GatewayMemory
from .metrics import GatewayMetrics

_EVERY_S = 0.25


async def show_forever(metrics: GatewayMetrics, pool: ConnectionPool, memory: GatewayMemory) -> None:
    """Show the state four times a second, until cancelled. So a request costs nothing for this."""
    loop = asyncio.get_running_loop()
    metrics.set_limits(max_connections=pool.limits.max_connections, held_bytes=memory.capacity)
    while True:
        due = loop.time() + _EVERY_S
        await asyncio.sleep(_EVERY_S)
        lag_s = max(0.0, loop.time() - due)
        metrics.show_state(lag_s=lag_s, num_connections=len(pool.connections), held_bytes=memory.held)
