"""One client sends requests, and three subscribers with its identity also receive the vectors. Needs a server.

    bert-serving-start & python examples/multicast.py [-port 5555] [-port_out 5556]

It prints how many replies each subscriber received. A reply reaches only subscribers that have subscribed
before the reply is sent, so the subscribers connect before the first request.
"""

from __future__ import annotations

import uuid

import zmq
from bert_serving.client import BertClient
from common import ports


def main() -> None:
    where = ports(__doc__)
    identity = uuid.uuid4().hex
    # A listener needs only a subscription. Each message is [identity, info, array, request id].
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
            heard += len(frames) == 4  # frames of a reply with vectors; the version check's reply has three
        print(f"listener {number} received {heard} replies")
        listener.close()


if __name__ == "__main__":
    main()
