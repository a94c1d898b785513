"""`python _asking.py PORT CONNECTIONS SECONDS BODY`: look features up as fast as answers come; prints
how many came and the seconds, as JSON. It imports nothing heavy, and does as little as it can for each."""

from __future__ import annotations

import asyncio
import json
import sys
import time


async def ask(port: int, connections: int, seconds: float, body: str) -> tuple[int, float]:
    head = (
        f"POST /get-online-features HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    request = (head + body).encode()
    until = time.perf_counter() + seconds

    async def connection() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        count = 0
        while time.perf_counter() < until:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            count += 1
        writer.close()
        return count

    began = time.perf_counter()
    counts = await asyncio.gather(*(connection() for _ in range(connections)))
    return sum(counts), time.perf_counter() - began


if __name__ == "__main__":
    given = sys.argv
    print(json.dumps(asyncio.run(ask(int(given[1]), int(given[2]), float(given[3]), given[4]))))
