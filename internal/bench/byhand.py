# What is usually written by hand in Python: read, decode, queue, write in
# batches. usage: byhand.py jsonl URL FILE | byhand.py postgres URL "DSN TABLE"
import asyncio
import json
import sys

import httpx


async def read(url, queue):
    async with httpx.AsyncClient(timeout=None) as client:
        async with client.stream("GET", url) as response:
            response.raise_for_status()
            event = {}
            async for line in response.aiter_lines():
                if line:
                    field, _, value = line.partition(": ")
                    event[field] = value
                elif event:
                    await queue.put((event.get("id"), event.get("event", "message"), json.loads(event["data"])))
                    event = {}
    await queue.put(None)


async def batches(queue):
    batch = []
    while (row := await queue.get()) is not None:
        batch.append(row)
        if len(batch) == 500:
            yield batch
            batch = []
    if batch:
        yield batch


async def to_lines(queue, path):
    with open(path, "w") as file:
        async for batch in batches(queue):
            file.write("".join(json.dumps({"id": i, "type": t, "data": d}) + "\n" for i, t, d in batch))
            file.flush()


async def to_postgres(queue, destination):
    import psycopg

    dsn, table = destination.split(" ")
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        async with conn.cursor() as cur:
            await cur.execute(f"CREATE TABLE {table} (id text, type text, data text)")
            await conn.commit()
            async for batch in batches(queue):
                async with cur.copy(f"COPY {table} (id, type, data) FROM STDIN") as copy:
                    for i, t, d in batch:
                        await copy.write_row((i, t, json.dumps(d)))
                await conn.commit()


async def main():
    to, url, destination = sys.argv[1:]
    queue = asyncio.Queue(10_000)
    write = to_lines if to == "jsonl" else to_postgres
    await asyncio.gather(read(url, queue), write(queue, destination))


asyncio.run(main())
