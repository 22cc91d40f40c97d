// A client like a page's over WebSocket: the same connection object, over a socket instead of a pipe.
"use strict";

const assert = require("node:assert/strict");
const { AbstractMessageReader, AbstractMessageWriter, createMessageConnection } = require("vscode-jsonrpc/node");
const { WebSocket } = require("ws");
const { common, run } = require("./checks");
const { serve } = require("./server");

class SocketReader extends AbstractMessageReader {
  constructor(socket) {
    super();
    this.socket = socket;
  }

  listen(callback) {
    this.socket.on("message", (data, isBinary) => {
      assert.equal(isBinary, false, "messages are text frames");
      callback(JSON.parse(data.toString("utf8")));
    });
    this.socket.on("error", (error) => this.fireError(error));
    this.socket.on("close", () => this.fireClose());
    return { dispose: () => this.socket.removeAllListeners("message") };
  }
}

class SocketWriter extends AbstractMessageWriter {
  constructor(socket) {
    super();
    this.socket = socket;
  }

  write(message) {
    return new Promise((resolve, reject) => {
      this.socket.send(JSON.stringify(message), (error) => (error ? reject(error) : resolve()));
    });
  }

  end() {}
}

/** Resolves to an open socket, or to the HTTP status of the refusal. */
function connect(port, protocols, headers = {}) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/rpc`, protocols, { headers });
    socket.on("open", () => resolve(socket));
    socket.on("unexpected-response", (_, response) => {
      resolve(response.statusCode);
      response.destroy();
    });
    socket.on("error", reject);
  });
}

async function main(binary) {
  const { child, port, token } = await serve(binary).catch((error) => {
    console.log(`FAILED  vscode-jsonrpc over WebSocket: ${error.message}`);
    process.exit(1);
  });
  process.on("exit", () => child.kill("SIGKILL"));
  const name = "vscode-jsonrpc over WebSocket";
  let socket;
  await run(name, [
    ["is refused without the token", async () => assert.equal(await connect(port, []), 401)],
    [
      "connects with the token as a header",
      async () => {
        const one = await connect(port, [], { Authorization: `Bearer ${token}` });
        assert.ok(one instanceof WebSocket, `refused with ${one}`);
        one.close();
      },
    ],
    [
      "connects with the token as a subprotocol",
      async () => {
        socket = await connect(port, ["souffleur", `souffleur.token.${token}`]);
        assert.ok(socket instanceof WebSocket, `refused with ${socket}`);
        assert.equal(socket.protocol, "souffleur", "the response does not repeat the token");
      },
    ],
  ]);
  const connection = createMessageConnection(new SocketReader(socket), new SocketWriter(socket));
  connection.listen();
  await run(name, common(connection));
  process.exit(0);
}

main(process.argv[2]);
