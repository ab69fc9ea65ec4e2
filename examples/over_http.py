"""Encodes sentences over HTTP with only Python's standard library. Needs a server with HTTP.

bert-serving-start -http_port 8125 & python examples/over_http.py [http://127.0.0.1:8125]
"""

from __future__ import annotations

import json
import sys
from typing import Any
from urllib.request import Request, urlopen


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send a JSON body and return the JSON response."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as response:
        content: dict[str, Any] = json.load(response)
    return content


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8125"
    content = post(f"{url}/encode", {"id": 123, "texts": ["hello world", "good day"]})
    print(content["id"], content["status"], len(content["result"]), len(content["result"][0]))
    options = {"pooling_strategy": ["REDUCE_MEAN", "REDUCE_MAX"], "normalize": True}
    content = post(f"{url}/encode", {"id": "wide", "texts": ["hello world"], "options": options})
    print(content["id"], content["status"], len(content["result"]), len(content["result"][0]))
    with urlopen(f"{url}/status/server", timeout=60) as response:
        print("server version", json.load(response)["server_version"])


if __name__ == "__main__":
    main()
