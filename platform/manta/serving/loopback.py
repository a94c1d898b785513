"""Keeping a replica off the network on a machine whose Ray is."""

from __future__ import annotations

from typing import Any

import ray


def stay_on_loopback() -> None:
    """Where Ray itself listens on the loopback interface only, let this replica do so too.

    Ray Serve opens a port in each replica for calls between deployments, on all interfaces, and unpickles
    what comes in; there is no setting for it. It does so after this object is made, by the function that is
    replaced here.
    """
    from ray.serve._private import replica

    if ray.util.get_node_ip_address() != "127.0.0.1":
        return  # a cluster: its machines must reach one another
    serves: Any = replica
    bind = serves.add_port_to_grpc_server

    def bind_here(server: Any, address: str) -> int:
        return int(bind(server, address.replace("[::]", "127.0.0.1")))

    serves.add_port_to_grpc_server = bind_here
