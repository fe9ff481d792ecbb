"""An agent that serves two people at once: `python agent_of_two.py URL CALLS`, with their tokens on standard input.

The input is {"ann": {"token": ..., "hears": ...}, ...}. The server answers each call with the credential that it
received; `hears` is the expected answer for this person. Each of several HTTP connections alternates between the
people, call by call. The program prints the number of right answers by person, and the number of each wrong answer.
"""

import http.client
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

CONNECTIONS = 8


def work(url: str, people: dict[str, dict[str, str]], calls: int) -> Counter[str]:
    """Make `calls` calls for each person over one connection.

    Return the number of right answers by person, and the number of each wrong answer.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    body = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "echo__it", "arguments": {}}}
    )
    heard: Counter[str] = Counter()
    for _ in range(calls):
        for name, person in people.items():
            headers = {"Authorization": f"Bearer {person['token']}", "Content-Type": "application/json"}
            connection.request("POST", parts.path, body, headers)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            texts = [block["text"] for block in told.get("result", {}).get("content", [])]
            heard[name if texts == [person["hears"]] else f"wrong: {answer.status} {told}"] += 1
    connection.close()
    return heard


def main(url: str, calls: int) -> None:
    people = json.load(sys.stdin)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        each = pool.map(lambda _: work(url, people, calls // CONNECTIONS), range(CONNECTIONS))
        sys.stdout.write(json.dumps(sum(each, Counter())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
