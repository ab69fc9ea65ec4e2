// Encode some texts: how similar they are, their tokens, what other number formats change, and the same call in code.

import { tokensOf, vectorsOf } from "./api.mjs";
import { milliseconds, percent } from "./format.mjs";
import { html, useState } from "./html.mjs";
import { Heatmap } from "./heatmap.mjs";
import { Snippets } from "./snippets.mjs";
import { similarities } from "./vectors.mjs";
import { Variants } from "./variants.mjs";
import { Why } from "./why.mjs";

const EXAMPLES = [
  "How do I reset my password?",
  "I forgot my password and cannot log in.",
  "What is the capital of France?",
  "Paris is the capital of France.",
];
const POOLINGS = ["", "REDUCE_MEAN", "REDUCE_MAX", "REDUCE_MEAN_MAX", "CLS_TOKEN", "SEP_TOKEN"];
const MAX_TEXTS = 50;

export function Try({ facts }) {
  const [text, setText] = useState(EXAMPLES.join("\n"));
  const [pooling, setPooling] = useState("");
  const [dimensions, setDimensions] = useState("");
  const [result, setResult] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const [isBusy, setBusy] = useState(false);

  const lines = text
    .split("\n")
    .filter((line) => line.trim())
    .slice(0, MAX_TEXTS);
  const options = {
    ...poolingOf(pooling, facts),
    ...(dimensions && { dimensions: Number(dimensions) }),
  };

  const encode = async (event) => {
    event.preventDefault();
    setBusy(true);
    setTrouble(null);
    try {
      const [encoded, tokens] = await Promise.all([
        vectorsOf(lines, { options }),
        tokensOf(lines, { dimensions: 1 }),
      ]);
      setResult({ texts: lines, options, encoded, tokens, matrix: similarities(encoded), madeAt: Date.now() });
    } catch (error) {
      setTrouble(error.message);
    }
    setBusy(false);
  };

  return html`
    <form onSubmit=${encode}>
      <label>
        Texts, one in a line (at most ${MAX_TEXTS})
        <textarea rows="5" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
      </label>
      <div class="fields">
        <label>
          Pooling
          <select value=${pooling} onChange=${(event) => setPooling(event.target.value)}>
            ${POOLINGS.map((name) => html`<option value=${name}>${name || `as the server: ${facts?.poolings?.join(", ") ?? "default"}`}</option>`)}
          </select>
        </label>
        <label>
          Dimensions
          <input
            type="number" min="1" max=${facts?.dimension} placeholder="all ${facts?.dimension ?? ""}"
            value=${dimensions} onInput=${(event) => setDimensions(event.target.value)}
          />
        </label>
        <button type="submit" aria-busy=${isBusy} disabled=${isBusy || !lines.length}>Encode</button>
      </div>
    </form>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${result && html`<${Result} key=${result.madeAt} result=${result} />`}
  `;
}

/** Return the option for a pooling. If the server returns a vector for each token, the page asks for their mean. */
export function poolingOf(chosen, facts) {
  const pooling = chosen || (facts?.poolings?.includes("NONE") ? "REDUCE_MEAN" : "");
  return pooling ? { pooling_strategy: pooling } : {};
}

function Result({ result }) {
  const { texts, encoded, tokens, matrix } = result;
  const [pair, setPair] = useState(texts.length > 1 ? [0, 1] : null);
  return html`
    <div class="columns">
      <section>
        <h2>How similar they are</h2>
        <p class="hint">The cosine of each pair. Choose one to see which words make the two similar.</p>
        <${Heatmap} labels=${texts.map((_, i) => i + 1)} matrix=${matrix} pair=${pair} onChoose=${setPair} />
        <${Times} encoded=${encoded} />
      </section>
      <section>
        <h2>Tokens</h2>
        <ol class="tokens">${texts.map((text, i) => html`<${Tokens} text=${text} ...${tokens[i]} />`)}</ol>
      </section>
    </div>
    ${pair && html`<${Why} texts=${texts} pair=${pair} similarity=${matrix[pair[0]][pair[1]]} />`}
    <${Variants} result=${result} />
    <${Snippets} texts=${texts} options=${result.options} />
  `;
}

function Times({ encoded }) {
  const { times, numTokens, width } = encoded;
  return html`
    <p class="hint">
      ${numTokens} tokens in all; ${width} components in each vector; ${milliseconds(times.total)} in the server (queue
      ${" "}${milliseconds(times.queue)}, tokenize ${milliseconds(times.tokenize)}, compute ${milliseconds(times.compute)}).
    </p>
  `;
}

/** The tokens of a text; what was cut is struck out. Special tokens have no place in the text. */
function Tokens({ text, tokens, offsets, isCut }) {
  const characters = [...text]; // offsets count code points, as Python does
  const end = Math.max(0, ...offsets.map(([, stop]) => stop));
  return html`
    <li>
      ${tokens.map((token, i) => html`<span class="token ${offsets[i][1] ? "" : "special"}">${token}</span>`)}
      ${isCut && html`<span class="cut" title="too long for the model: this part does not count">${characters.slice(end).join("")}</span>`}
      <small class="hint">${tokens.length} tokens${isCut ? `; ${percent(1 - end / characters.length)} of the text was cut` : ""}</small>
    </li>
  `;
}
