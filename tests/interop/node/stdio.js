// A client like an editor's over stdio, with Content-Length framing: initialize, the checks, shutdown, exit.
"use strict";

const assert = require("node:assert/strict");
const { createMessageConnection, StreamMessageReader, StreamMessageWriter } = require("vscode-jsonrpc/node");
const { common, run } = require("./checks");
const { ended, stdio } = require("./server");

async function main(binary) {
  const child = stdio(binary);
  child.on("error", (error) => {
    console.log(`FAILED  vscode-jsonrpc over stdio: ${error.message}`);
    process.exit(1);
  });
  const connection = createMessageConnection(new StreamMessageReader(child.stdout), new StreamMessageWriter(child.stdin));
  connection.listen();
  await run("vscode-jsonrpc over stdio", [
    [
      "initializes",
      async () => {
        const params = { processId: process.pid, clientInfo: { name: "interop" }, rootUri: null, capabilities: {} };
        const { serverInfo } = await connection.sendRequest("initialize", params);
        await connection.sendNotification("initialized", {});
        assert.equal(serverInfo.name, "souffleur");
        return `${serverInfo.name} ${serverInfo.version}`;
      },
    ],
    ...common(connection),
    [
      "shuts down",
      async () => {
        assert.equal(await connection.sendRequest("shutdown"), null);
        await connection.sendNotification("exit");
        assert.equal(await ended(child), 0);
        return "exit code 0";
      },
    ],
  ]);
}

main(process.argv[2]);
