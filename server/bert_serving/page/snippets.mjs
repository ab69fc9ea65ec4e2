// The call that the page has made, as a command or a program.

import { address, hasKey } from "./api.mjs";
import { html, useState } from "./html.mjs";

const KEY = "YOUR_KEY"; // the page does not show the key

export function Snippets({ texts, options }) {
  return html`
    <h2>The same call in code</h2>
    <div class="columns">
      ${Object.entries(snippetsOf(texts.slice(0, 3), options)).map(
        ([name, code]) => html`<section><h3>${name}</h3><${Snippet} code=${code} name=${name} /></section>`,
      )}
    </div>
  `;
}

function Snippet({ code, name }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(code);
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return html`
    <pre class="snippet" tabindex="0"><code>${code}</code></pre>
    <button type="button" class="outline small" aria-label="Copy: ${name}" onClick=${copy}>${isCopied ? "Copied" : "Copy"}</button>
  `;
}

/** Return the code by its name. */
export function snippetsOf(texts, options) {
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
      `with BertClient(ip="${location.hostname}") as client:\n    vectors = client.encode(${list}${settings})`,
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
