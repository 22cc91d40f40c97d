// Starts the binary and finds its address. Only this file knows the command line and the output of the binary.
"use strict";

const { spawn } = require("node:child_process");
const readline = require("node:readline");

/** The URL that `serve` prints for the user, on stdout or stderr. */
const ADDRESS = /http:\/\/127\.0\.0\.1:(\d+)\/#token=([0-9a-f]+)/;

const START_LIMIT_MS = 30_000;
const STOP_LIMIT_MS = 10_000;

function stdio(binary) {
  return spawn(binary, ["stdio"], { stdio: ["pipe", "pipe", "inherit"] });
}

/** Starts `serve`; resolves to its process, its port and its token. */
function serve(binary) {
  const child = spawn(binary, ["serve", "--port", "0"], { stdio: ["ignore", "pipe", "pipe"] });
  return new Promise((resolve, reject) => {
    const seen = [];
    const fail = (why) => {
      child.kill("SIGKILL");
      reject(new Error(`${why}; it printed:\n${seen.join("\n")}`));
    };
    const timer = setTimeout(() => fail(`serve printed no address within ${START_LIMIT_MS} ms`), START_LIMIT_MS);
    child.on("error", reject);
    child.on("exit", (code) => fail(`serve ended with ${code} before it listened`));
    for (const stream of [child.stdout, child.stderr]) {
      readline.createInterface({ input: stream }).on("line", (line) => {
        seen.push(line);
        const match = ADDRESS.exec(line);
        if (match !== null) {
          clearTimeout(timer);
          child.removeAllListeners("exit");
          resolve({ child, port: Number(match[1]), token: match[2] });
        }
      });
    }
  });
}

/** Waits for the process to end by itself; resolves to its exit code. */
function ended(child) {
  if (child.exitCode !== null) {
    return Promise.resolve(child.exitCode);
  }
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`the process did not end within ${STOP_LIMIT_MS} ms`));
    }, STOP_LIMIT_MS);
    child.on("exit", (code) => {
      clearTimeout(timer);
      resolve(code);
    });
  });
}

module.exports = { stdio, serve, ended };
