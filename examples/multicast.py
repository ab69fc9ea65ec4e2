"""One client sends requests, and three subscribers with its identity also receive the vectors. Needs a server.

    bert-serving-start & python examples/multicast.py [-port 5555] [-port_out 5556]

It prints how many replies each subscriber received. A reply reaches only subscribers that have subscribed before
the reply is sent, so the client first sends greetings until every subscriber has received one.
"""

from __future__ import annotations

import json
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
        while not all(listener.poll(100) for listener in listeners):
            client.encode(["is everybody here?"])
        for i in range(3):
            client.encode([f"message {i} for everybody", "and its second sentence"])
    for number, listener in enumerate(listeners):
        heard = 0
        while heard < 3 and listener.poll(5000):
            frames = listener.recv_multipart()
            # The reply to the version check has no vectors, and those to greetings have one.
            heard += len(frames) == 4 and json.loads(frames[1])["shape"][0] == 2
        print(f"listener {number} received {heard} replies")
        listener.close()


if __name__ == "__main__":
    main()
