"""The same over HTTP, with nothing but Python's own library.

bert-serving-start -http_port 8125 & python examples/over_http.py [http://127.0.0.1:8125]
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.request import Request, urlopen


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON answer to a JSON body."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as reply:
        answer: dict[str, Any] = json.load(reply)
    return answer


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8125"
    answer = post(f"{url}/encode", {"id": 123, "texts": ["hello world", "good day"]})
    print(answer["id"], answer["status"], len(answer["result"]), len(answer["result"][0]))
    options = {"pooling_strategy": ["REDUCE_MEAN", "REDUCE_MAX"], "normalize": True}
    answer = post(f"{url}/encode", {"id": "wide", "texts": ["hello world"], "options": options})
    print(answer["id"], answer["status"], len(answer["result"]), len(answer["result"][0]))
    with urlopen(f"{url}/status/server", timeout=60) as reply:
        print("server version", json.load(reply)["server_version"])


if __name__ == "__main__":
    main()
