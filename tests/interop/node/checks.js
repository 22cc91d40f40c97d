// Checks that run over every transport, through a vscode-jsonrpc connection.
"use strict";

const assert = require("node:assert/strict");
const { CancellationToken, CancellationTokenSource, ProgressType, ResponseError } = require("vscode-jsonrpc");

const INFILL = { prefix: "import json\n\ndef load(path):\n    with open(path) as f:\n        ", suffix: "\n" };
const REQUEST_CANCELLED = -32800;
const FINISH_REASONS = ["eos", "stop", "length"];
const LIMIT_MS = 60_000;

/** Runs the named checks one after another; the first that fails ends the process. */
async function run(client, checks) {
  for (const [name, check] of checks) {
    const timer = setTimeout(() => fail(client, name, new Error(`no end within ${LIMIT_MS} ms`)), LIMIT_MS);
    try {
      const note = await check();
      console.log(`ok      ${client}: ${name}${note === undefined ? "" : ` (${note})`}`);
    } catch (error) {
      fail(client, name, error);
    } finally {
      clearTimeout(timer);
    }
  }
}

function fail(client, name, error) {
  console.log(`FAILED  ${client}: ${name}: ${error.stack}`);
  if (error instanceof ResponseError) {
    console.log(`        code ${error.code}, data ${JSON.stringify(error.data)}`);
  }
  process.exit(1);
}

let tokens = 0;

/** Sends a streaming request; `onUpdate` is called with every update. */
async function streamed(connection, method, params, onUpdate = () => {}, cancellation = CancellationToken.None) {
  const partialResultToken = `stream-${tokens++}`;
  const updates = [];
  const listener = connection.onProgress(new ProgressType(), partialResultToken, (update) => {
    updates.push(update);
    onUpdate(update);
  });
  try {
    const result = await connection.sendRequest(method, { ...params, partialResultToken }, cancellation);
    return { result, updates };
  } finally {
    listener.dispose();
  }
}

/** The error response of a request; throws if there is a result or a local error. */
async function errorOf(promise) {
  try {
    const result = await promise;
    throw new assert.AssertionError({ message: `got the result ${JSON.stringify(result)} instead of an error` });
  } catch (error) {
    if (error instanceof ResponseError) {
      return error;
    }
    throw error;
  }
}

function checkResult(result) {
  assert.ok(FINISH_REASONS.includes(result.finishReason), `finishReason is ${result.finishReason}`);
  assert.ok(result.usage.promptTokens > 0);
  assert.ok(result.usage.cachedTokens >= 0);
  assert.ok(result.usage.completionTokens > 0);
  assert.equal(typeof result.sampling, "object");
  assert.equal(typeof result.timings, "object");
}

/** The checks for one connection. */
function common(connection) {
  return [
    [
      "completes a stream",
      async () => {
        const { result, updates } = await streamed(connection, "infill", { ...INFILL, maxTokens: 24 });
        checkResult(result);
        assert.equal(result.text, "", "the text was streamed, so the result does not repeat it");
        assert.equal(updates[0].seq, 0);
        assert.ok(updates.every((update, i) => i === 0 || update.seq > updates[i - 1].seq), "seq grows");
        const text = updates.map((update) => update.text).join("");
        assert.ok(text.length > 0);
        const whole = await connection.sendRequest("infill", { ...INFILL, maxTokens: 24 });
        checkResult(whole);
        assert.equal(whole.text, text, "the same request without a stream has the same text");
        return `${updates.length} updates, ${JSON.stringify(text.split("\n")[0])}`;
      },
    ],
    [
      "cancels a stream",
      async () => {
        const source = new CancellationTokenSource();
        let seen = 0;
        const cancel = () => {
          seen += 1;
          source.cancel();
        };
        const params = { prompt: "def main():\n", maxTokens: 1500 };
        const error = await errorOf(streamed(connection, "complete", params, cancel, source.token));
        assert.ok(seen > 0, "an update came before the cancellation");
        assert.equal(error.code, REQUEST_CANCELLED);
        assert.equal(error.data.kind, "cancelled");
        assert.ok(error.data.usage.completionTokens > 0);
        assert.ok(error.data.usage.completionTokens < 1500);
        return `after ${error.data.usage.completionTokens} tokens`;
      },
    ],
    [
      "stays usable after an error",
      async () => {
        const error = await errorOf(connection.sendRequest("complete", { model: "no such model", prompt: "x", maxTokens: 4 }));
        assert.equal(error.data.kind, "unknown_model");
        assert.equal(error.data.retryable, false);
        const { result, updates } = await streamed(connection, "complete", { prompt: "fn main() {\n", maxTokens: 8 });
        checkResult(result);
        assert.ok(updates.length > 0);
        return `${error.code} ${JSON.stringify(error.message)}, then ${result.usage.completionTokens} tokens`;
      },
    ],
    [
      "runs two streams concurrently",
      async () => {
        const complete = (prompt) => streamed(connection, "complete", { prompt, maxTokens: 16 });
        const alone = [await complete("package main\n"), await complete("#include <")];
        const together = await Promise.all([complete("package main\n"), complete("#include <")]);
        const text = ({ updates }) => updates.map((update) => update.text).join("");
        assert.deepEqual(together.map(text), alone.map(text), "concurrent streams do not affect each other");
      },
    ],
  ];
}

module.exports = { run, common, errorOf };
