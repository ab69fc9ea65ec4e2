// Calls of this server. The API key stays in this tab: the browser forgets it when the tab is closed.

const KEY = "bert-serving-key";
const RETRY_MS = 1000;
const SILENCE_MS = 15_000; // an event arrives every two seconds
const MAX_WAIT_S = 30;

export const root = document.querySelector('meta[name="root"]').content;
export const address = location.origin + root;

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key === null ? {} : { Authorization: `Bearer ${key}` };
}

/** A response that is an error. status: of HTTP; 0 if there was no response. retryAfterS: when to try again. */
export class CallError extends Error {
  constructor(message, status, retryAfterS = 1) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

/** Return the result of an asynchronous function; while the server has no room or is not ready, try again. */
export async function patiently(call, signal) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (![429, 503].includes(error.status) || signal.aborted) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(error.retryAfterS, MAX_WAIT_S)));
      signal.throwIfAborted();
    }
  }
}

/** Return the settings and the state of the server. Throws CallError. */
export async function serverStatus() {
  const response = await fetch(root + "/status/server", { headers: headers() });
  if (!response.ok) throw new CallError(await messageOf(response), response.status);
  return response.json();
}

/** Send a JSON body; return the response. Throws CallError. */
export async function post(path, body, signal) {
  let response;
  try {
    response = await fetch(root + path, {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError("the server does not answer", 0);
  }
  if (response.ok) return response;
  const retryAfterS = Number(response.headers.get("retry-after")) || 1;
  throw new CallError(await messageOf(response), response.status, retryAfterS);
}

async function messageOf(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    return body.description ?? body.error ?? body.message ?? text;
  } catch {
    return text || `status ${response.status}`;
  }
}

/** Return {rows, width, dtype, times, truncated} for texts. rows: a typed array, one row after the other.
 *
 * settings: {options, output_dtype} as in POST /encode. times: milliseconds of the stages. truncated: indices of
 * the texts that were cut, at most 256 of them. */
export async function vectorsOf(texts, settings = {}, signal = undefined) {
  const response = await post(
    "/encode",
    { id: 0, texts, encoding_format: "raw", output_dtype: "float32", ...settings },
    signal,
  );
  const shape = response.headers.get("x-shape").split(",").map(Number);
  const arrays = { float32: Float32Array, int8: Int8Array, uint8: Uint8Array };
  const dtype = response.headers.get("x-dtype");
  const time = (name) => Number(response.headers.get(name));
  const truncated = response.headers.get("x-truncated");
  return {
    rows: new arrays[dtype](await response.arrayBuffer()),
    width: shape.at(-1),
    dtype,
    times: {
      queue: time("x-queue-time"),
      tokenize: time("x-tokenization-time"),
      compute: time("x-inference-time"),
      total: time("x-total-time"),
    },
    numTokens: time("x-compute-tokens"),
    truncated: truncated ? truncated.split(",").map(Number) : [],
  };
}

/** Return {vectors, tokens, offsets, isCut} of each text: one vector for each token.
 *
 * dimensions: the number of components of a vector; 1 if only the tokens are needed, which makes the reply small. */
export async function tokensOf(texts, { dimensions } = {}) {
  const options = {
    pooling_strategy: "NONE",
    normalize: false,
    ...(dimensions && { dimensions }),
    ragged: true,
    show_tokens: true,
    show_offsets: true,
  };
  const reply = await (await post("/encode", { id: 0, texts, options })).json();
  return texts.map((_, i) => ({
    vectors: reply.result[i],
    tokens: reply.tokens[i],
    offsets: reply.offsets[i],
    isCut: (reply.truncated ?? []).includes(i),
  }));
}

/** Follow the state of the server until `stop` of the result is called. A hidden page does not follow it.
 *
 * onEvent: gets each event; see GET /page/live. onTrouble: gets the message and the status of each failed attempt to
 * connect, and of each connection that ends; a new attempt follows in a second. */
export function follow(onEvent, onTrouble) {
  let abort = new AbortController();
  const start = async ({ signal }) => {
    while (!signal.aborted) {
      try {
        await readStream(signal, onEvent);
        if (!signal.aborted) onTrouble("the connection has ended", 0);
      } catch (error) {
        if (signal.aborted) return;
        onTrouble(error.message, error.status ?? 0);
        if (error.status === 401) return;
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  };
  const onVisibility = () => {
    abort.abort();
    abort = new AbortController();
    if (!document.hidden) start(abort);
  };
  document.addEventListener("visibilitychange", onVisibility);
  onVisibility();
  return {
    stop: () => {
      document.removeEventListener("visibilitychange", onVisibility);
      abort.abort();
    },
  };
}

async function readStream(signal, onEvent) {
  let response;
  try {
    response = await fetch(root + "/page/live", { headers: headers(), signal });
  } catch {
    throw new CallError("the server does not answer", 0);
  }
  if (!response.ok) throw new CallError(await messageOf(response), response.status);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await Promise.race([reader.read().catch(() => ({ done: true })), silence()]);
      if (done) return;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) if (event.startsWith("data: ")) onEvent(JSON.parse(event.slice(6)));
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be closed already
  }
}

/** Throw CallError after a while: a machine that has lost its power or its network does not close connections. */
async function silence() {
  await new Promise((resolve) => setTimeout(resolve, SILENCE_MS));
  throw new CallError(`nothing has arrived for ${SILENCE_MS / 1000} s`, 0);
}
