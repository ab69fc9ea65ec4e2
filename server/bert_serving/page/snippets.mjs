// The call that the page has made, as a command or a program.

import { address, hasKey, serverStatus } from "./api.mjs";
import { html, useEffect, useRef, useState } from "./html.mjs";

const KEY = "YOUR_KEY"; // the page does not show the key

const MAX_TEXTS = 3;

export function Snippets({ texts, options }) {
  const [status, setStatus] = useState(null);
  useEffect(() => {
    serverStatus().then(setStatus, () => setStatus({ port: 5555, port_out: 5556 })); // the usual ones
  }, []);
  if (!status) return null;
  return html`
    <h2>The same call in code</h2>
    ${texts.length > MAX_TEXTS && html`<p class="hint">With the first ${MAX_TEXTS} texts.</p>`}
    ${["127.0.0.1", "::1", "localhost"].includes(status.host) && html`<p class="hint">The ports of BertClient are open on the server's own machine only.</p>`}
    ${status.curve && html`<p class="hint">The ports of BertClient are encrypted: give it curve_dir.</p>`}
    <p class="hint">The vectors of OpenAI's API have length 1.</p>
    ${options.pooling_strategy && html`<p class="hint">OpenAI's API cannot choose the pooling: that call gets the server's.</p>`}
    <div class="columns">
      ${Object.entries(snippetsOf(texts.slice(0, MAX_TEXTS), options, status)).map(
        ([name, code]) => html`<section><h3>${name}</h3><${Snippet} code=${code} name=${name} /></section>`,
      )}
    </div>
  `;
}

function Snippet({ code, name }) {
  const shown = useRef();
  const [state, setState] = useState("Copy");
  const copy = async () => {
    setState((await copied(code, shown.current)) ? "Copied" : "Selected: copy it with the keyboard");
    setTimeout(() => setState("Copy"), 3000);
  };
  return html`
    <pre class="snippet" tabindex="0"><code ref=${shown}>${code}</code></pre>
    <button type="button" class="outline small" aria-label="Copy: ${name}" onClick=${copy}>${state}</button>
  `;
}

/** Copy a text that is shown; return whether it was copied. Without HTTPS, a browser only lets pages select it. */
async function copied(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

/** Return the code by its name. status: has {port, port_out} of BertClient. */
export function snippetsOf(texts, options, { port, port_out }) {
  const body = JSON.stringify({ id: 1, texts, options });
  const list = `[${texts.map(python).join(", ")}]`;
  const settings = Object.entries(options)
    .map(([name, value]) => `, ${name}=${python(value)}`)
    .join("");
  const dimensions = options.dimensions ? `, dimensions=${options.dimensions}` : "";
  return {
    curl: `curl ${address}/encode${hasKey() ? ` -H 'Authorization: Bearer ${KEY}'` : ""} -d '${body.replaceAll("'", "'\\''")}'`,
    "Python, BertClient (on the ports for ZeroMQ)":
      `from bert_serving.client import BertClient\n\n` +
      `with BertClient(ip="${location.hostname.replace(/[[\]]/g, "")}", port=${port}, port_out=${port_out}) as client:\n    vectors = client.encode(${list}${settings})`,
    "Python, OpenAI's client":
      `from openai import OpenAI\n\n` +
      `client = OpenAI(base_url="${address}/v1", api_key="${hasKey() ? KEY : "none"}")\n` +
      `reply = client.embeddings.create(model="any", input=${list}${dimensions})\nvectors = [each.embedding for each in reply.data]`,
  };
}

/** Return a string or a number in Python's notation. JSON's escapes of a string mean the same in Python. */
function python(value) {
  return JSON.stringify(value);
}
