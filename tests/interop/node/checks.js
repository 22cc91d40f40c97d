// The checks that every transport must pass, through a vscode-jsonrpc connection.
"use strict";

const assert = require("node:assert/strict");
const { CancellationToken, CancellationTokenSource, ProgressType, ResponseError } = require("vscode-jsonrpc");

const HOLE = { prefix: "import json\n\ndef load(path):\n    with open(path) as f:\n        ", suffix: "\n" };
const REQUEST_CANCELLED = -32800;
const FINISH_REASONS = ["eos", "stop", "length"];
const LIMIT_MS = 60_000;

/** Runs the named checks in order; the first failure ends the process. */
async function run(client, checks) {
  for (const [name, check] of checks) {
    const timer = setTimeout(() => fail(client, name, new Error(`did not finish within ${LIMIT_MS} ms`)), LIMIT_MS);
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

/** Sends a streamed completion; calls `onPartial` with every partial result. */
async function streamed(connection, method, params, onPartial = () => {}, cancellation = CancellationToken.None) {
  const partialResultToken = `stream-${tokens++}`;
  const partials = [];
  const listener = connection.onProgress(new ProgressType(), partialResultToken, (partial) => {
    partials.push(partial);
    onPartial(partial);
  });
  try {
    const result = await connection.sendRequest(method, { ...params, partialResultToken }, cancellation);
    return { result, partials };
  } finally {
    listener.dispose();
  }
}

/** The error with which the server rejects a request; errors of this client are thrown. */
async function refused(promise) {
  try {
    const result = await promise;
    throw new assert.AssertionError({ message: `answered with ${JSON.stringify(result)}, expected an error` });
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

/** The checks, on one connection. */
function common(connection) {
  return [
    [
      "completes a stream",
      async () => {
        const { result, partials } = await streamed(connection, "infill", { ...HOLE, maxTokens: 24 });
        checkResult(result);
        assert.equal(result.text, "", "the text was streamed, so the response does not repeat it");
        assert.equal(partials[0].seq, 0);
        assert.ok(partials.every((partial, i) => i === 0 || partial.seq > partials[i - 1].seq), "seq grows");
        const text = partials.map((partial) => partial.text).join("");
        assert.ok(text.length > 0);
        const whole = await connection.sendRequest("infill", { ...HOLE, maxTokens: 24 });
        checkResult(whole);
        assert.equal(whole.text, text, "the same request without a stream has the same text");
        return `${partials.length} partial results, ${JSON.stringify(text.split("\n")[0])}`;
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
        const error = await refused(streamed(connection, "complete", params, cancel, source.token));
        assert.ok(seen > 0, "cancelled before the first partial result");
        assert.equal(error.code, REQUEST_CANCELLED);
        assert.equal(error.data.kind, "cancelled");
        assert.ok(error.data.usage.completionTokens > 0);
        assert.ok(error.data.usage.completionTokens < 1500);
        return `after ${error.data.usage.completionTokens} tokens`;
      },
    ],
    [
      "survives an error",
      async () => {
        const error = await refused(connection.sendRequest("complete", { model: "no such model", prompt: "x", maxTokens: 4 }));
        assert.equal(error.data.kind, "unknown_model");
        assert.equal(error.data.retryable, false);
        const { result, partials } = await streamed(connection, "complete", { prompt: "fn main() {\n", maxTokens: 8 });
        checkResult(result);
        assert.ok(partials.length > 0);
        return `${error.code} ${JSON.stringify(error.message)}, then ${result.usage.completionTokens} tokens`;
      },
    ],
    [
      "runs two streams concurrently",
      async () => {
        const ask = (prompt) => streamed(connection, "complete", { prompt, maxTokens: 16 });
        const alone = [await ask("package main\n"), await ask("#include <")];
        const together = await Promise.all([ask("package main\n"), ask("#include <")]);
        const text = ({ partials }) => partials.map((partial) => partial.text).join("");
        assert.deepEqual(together.map(text), alone.map(text), "the streams do not affect each other");
      },
    ],
  ];
}

module.exports = { run, common, refused };
