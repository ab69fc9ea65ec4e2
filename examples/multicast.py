"""Clients that share an identity all hear the replies: one asks, and three get the vectors.

    bert-serving-start & python examples/multicast.py [-port 5555] [-port_out 5556]

A message reaches those who have subscribed by then, so the listeners are connected before the question.
"""

from __future__ import annotations

import uuid

import zmq
from bert_serving.client import BertClient
from common import ports


def main() -> None:
    where = ports(__doc__)
    identity = uuid.uuid4().hex
    # A listener needs no more than a subscription: it hears [identity, info, array, request id].
    listeners: list[zmq.Socket[bytes]] = [zmq.Context.instance().socket(zmq.SUB) for _ in range(3)]
    for listener in listeners:
        listener.subscribe(identity)
        listener.connect(f"tcp://localhost:{where['port_out']}")
    with BertClient(**where, identity=identity) as client:
        for i in range(3):
            client.encode([f"message {i} for everybody"])
    for number, listener in enumerate(listeners):
        heard = 0
        while listener.poll(500):
            frames = listener.recv_multipart()
            heard += len(frames) == 4  # vectors; the answer to the client's check has three frames
        print(f"listener {number} heard {heard} replies")
        listener.close()


if __name__ == "__main__":
    main()
