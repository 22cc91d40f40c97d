"""A Python client over WebSocket, built on `websockets` only: the JSON-RPC messages are written by hand.

    python websocket.py BINARY
"""

import asyncio
import itertools
import json
import re
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

CLIENT = "Python websockets"
HOLE = {"prefix": "import json\n\ndef load(path):\n    with open(path) as f:\n        ", "suffix": "\n"}
REQUEST_CANCELLED = -32800
START_LIMIT_S = 30
CHECK_LIMIT_S = 60

# The URL that `serve` prints for the user, on stdout or stderr.
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)/#token=([0-9a-f]+)")


async def serve(binary):
    """Starts `serve`; returns its process, its port and its token."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(binary, "serve", "--port", "0", stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    seen = []
    found = asyncio.get_running_loop().create_future()

    async def read(stream):
        # Continues to read after the address was found: a full pipe would block the server.
        while line := await stream.readline():
            seen.append(line.decode(errors="replace").rstrip())
            match = ADDRESS.search(seen[-1])
            if match and not found.done():
                found.set_result((int(match[1]), match[2]))

    readers = [asyncio.create_task(read(stream)) for stream in (process.stdout, process.stderr)]
    try:
        port, token = await asyncio.wait_for(found, START_LIMIT_S)
    except TimeoutError:
        process.kill()
        raise AssertionError(f"serve printed no address within {START_LIMIT_S} s; it printed:\n" + "\n".join(seen)) from None
    return process, readers, port, token


def open_socket(port, **options):
    # Ignore proxies that are set in the environment: they are for other hosts.
    return connect(f"ws://127.0.0.1:{port}/rpc", proxy=None, **options)


class Client:
    """Sends requests over one socket and reads their responses; one call at a time."""

    def __init__(self, socket):
        self.socket = socket
        self.ids = itertools.count(1)

    async def send(self, method, params):
        number = next(self.ids)
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
        return number

    async def notify(self, method, params):
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))

    async def receive(self):
        message = await self.socket.recv()
        assert isinstance(message, str), "messages are text frames"
        message = json.loads(message)
        assert message["jsonrpc"] == "2.0"
        return message

    async def call(self, method, params, on_partial=None):
        """Returns the response and the partial results before it; awaits `on_partial` with the request's id at each of them."""
        params = dict(params)
        if on_partial is not None:
            params["partialResultToken"] = f"stream-{method}"
        number = await self.send(method, params)
        partials = []
        while True:
            message = await self.receive()
            if message.get("method") == "$/progress":
                assert message["params"]["token"] == params["partialResultToken"]
                partials.append(message["params"]["value"])
                await on_partial(number)
            else:
                assert message["id"] == number
                return message, partials


async def nothing(_):
    pass


def check_result(result):
    assert result["finishReason"] in ("eos", "stop", "length"), result
    assert result["usage"]["promptTokens"] > 0
    assert result["usage"]["cachedTokens"] >= 0
    assert result["usage"]["completionTokens"] > 0
    assert isinstance(result["sampling"], dict)
    assert isinstance(result["timings"], dict)


async def completes_a_stream(client):
    response, partials = await client.call("infill", {**HOLE, "maxTokens": 24}, nothing)
    check_result(response["result"])
    assert response["result"]["text"] == "", "the text was streamed, so the response does not repeat it"
    assert partials[0]["seq"] == 0
    assert all(a["seq"] < b["seq"] for a, b in zip(partials, partials[1:])), "seq grows"
    text = "".join(partial["text"] for partial in partials)
    assert text
    whole, _ = await client.call("infill", {**HOLE, "maxTokens": 24})
    assert whole["result"]["text"] == text, "the same request without a stream has the same text"
    return f"{len(partials)} partial results, {text.splitlines()[0]!r}"


async def cancels_a_stream(client):
    cancelled = []

    async def cancel(number):
        if not cancelled:
            cancelled.append(number)
            await client.notify("$/cancelRequest", {"id": number})

    response, partials = await client.call("complete", {"prompt": "def main():\n", "maxTokens": 1500}, cancel)
    assert partials, "cancelled before the first partial result"
    error = response["error"]
    assert error["code"] == REQUEST_CANCELLED, error
    assert error["data"]["kind"] == "cancelled"
    tokens = error["data"]["usage"]["completionTokens"]
    assert 0 < tokens < 1500
    return f"after {tokens} tokens"


async def survives_an_error(client):
    response, _ = await client.call("complete", {"model": "no such model", "prompt": "x", "maxTokens": 4})
    error = response["error"]
    assert error["data"]["kind"] == "unknown_model", error
    assert error["data"]["retryable"] is False
    response, partials = await client.call("complete", {"prompt": "fn main() {\n", "maxTokens": 8}, nothing)
    check_result(response["result"])
    assert partials
    return f"{error['code']} {error['message']!r}, then {response['result']['usage']['completionTokens']} tokens"


async def answers_invalid_json(client):
    await client.socket.send("{ this is not JSON")
    message = await client.receive()
    assert message["id"] is None
    assert message["error"]["code"] == -32700, message
    response, _ = await client.call("complete", {"prompt": "x = ", "maxTokens": 2})
    check_result(response["result"])


async def check(name, work):
    try:
        note = await asyncio.wait_for(work, CHECK_LIMIT_S)
    except Exception as error:
        print(f"FAILED  {CLIENT}: {name}: {type(error).__name__}: {error}")
        raise
    print(f"ok      {CLIENT}: {name}" + (f" ({note})" if note else ""), flush=True)


async def refused(port, status, **options):
    try:
        async with open_socket(port, **options):
            raise AssertionError(f"connected, expected {status}")
    except InvalidStatus as error:
        assert error.response.status_code == status, error


async def main(binary):
    process, readers, port, token = await serve(binary)
    try:
        await check("is refused without the token", refused(port, 401))
        await check("is refused with another origin", refused(port, 403, origin="https://example.com", additional_headers={"Authorization": f"Bearer {token}"}))
        for how, options in (
            ("header", {"additional_headers": {"Authorization": f"Bearer {token}"}}),
            ("subprotocol", {"subprotocols": ["souffleur", f"souffleur.token.{token}"]}),
        ):
            async with open_socket(port, **options) as socket:
                client = Client(socket)
                await check(f"completes a stream, with the token as a {how}", completes_a_stream(client))
                if how == "subprotocol":
                    assert socket.subprotocol == "souffleur", "the response does not repeat the token"
                    continue
                await check("cancels a stream", cancels_a_stream(client))
                await check("survives an error", survives_an_error(client))
                await check("answers invalid JSON with an error", answers_invalid_json(client))
    finally:
        for reader in readers:
            reader.cancel()
        process.kill()
        await process.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
