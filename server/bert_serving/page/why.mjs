// Why two texts are similar: the cosine of two means of token vectors is a sum over pairs of tokens.

import { useColours } from "./chart.mjs";
import { shade } from "./heatmap.mjs";
import { html, useMemo } from "./html.mjs";
import { contributions } from "./vectors.mjs";

const MAX_TOKENS = 40; // so many rows and columns are shown; the sum counts all

export function Why({ texts, tokens, pair, poolings }) {
  const [first, second] = pair.map((i) => tokens[i]);
  const { isDark } = useColours();
  const matrix = useMemo(() => contributions(first.vectors, second.vectors), [first, second]);
  const total = matrix.flat().reduce((sum, value) => sum + value, 0);
  const largest = Math.max(...matrix.flat().map(Math.abs));
  const shown = matrix.slice(0, MAX_TOKENS).map((row) => row.slice(0, MAX_TOKENS));
  const isWhole = first.tokens.length <= MAX_TOKENS && second.tokens.length <= MAX_TOKENS;
  const isMean = String(poolings) === "REDUCE_MEAN";
  return html`
    <h2>Why texts ${pair[0] + 1} and ${pair[1] + 1} are similar</h2>
    <p class="hint">
      With mean pooling, the cosine of two texts is exactly the sum of what each pair of tokens adds. The numbers are
      thousandths. ${isMean ? "" : "The vectors above were pooled in another way, so their cosine may differ."}
      ${isWhole ? "" : `Only the first ${MAX_TOKENS} tokens of each text are shown; the sum counts all.`}
    </p>
    <p>Sum of all pairs, which is the cosine of mean pooling: <output class="sum">${total.toFixed(4)}</output></p>
    <div class="scroll" tabindex="0" role="region" aria-label="What each pair of tokens adds">
      <table class="matrix why">
        <thead>
          <tr><td></td>${second.tokens.slice(0, MAX_TOKENS).map((token) => html`<th scope="col" class="tall">${token}</th>`)}</tr>
        </thead>
        <tbody>
          ${shown.map(
            (row, i) => html`
              <tr>
                <th scope="row">${first.tokens[i]}</th>
                ${row.map((value) => html`<td><span class="cell" style=${shade(value / largest, isDark)}>${Math.round(value * 1000)}</span></td>`)}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}
