"""A BOINC app that says and hears all that one can while it runs: run by the real client, in its slot."""

import asyncio
import sys
from pathlib import Path

from vmwrapper.boinc.client import Client


async def talk(client: Client) -> None:
    async with client.episode():
        await client.send_trickle_up("progress", "<percent>50</percent>")
        client.resolve("half.dat").write_bytes(b"half")
        await client.upload("half.dat")
        async for trickle in client.trickle_downs():
            client.resolve("out.dat").write_bytes(trickle.content)
            break
        while (status := client.upload_status("half.dat")) is None:
            await asyncio.sleep(0.1)
        if status != 0:
            sys.exit(f"uploaded with status {status}")


app = Client(Path.cwd())
asyncio.run(talk(app))
sys.exit(app.end(None))
