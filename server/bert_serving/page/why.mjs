// Why two texts are similar: the cosine of two means of token vectors is a sum over pairs of tokens.

import { tokensOf } from "./api.mjs";
import { useColours } from "./chart.mjs";
import { shade } from "./heatmap.mjs";
import { html, useEffect, useMemo, useState } from "./html.mjs";
import { contributions, meanCosine } from "./vectors.mjs";

const MAX_TOKENS = 40; // so many rows and columns are shown; the sum counts all
const ROUNDING = 0.005; // of vectors in bfloat16

/** similarity: what the table above shows for the pair. */
export function Why({ texts, pair, similarity }) {
  const [tokens, setTokens] = useState(null); // {of: the pair, first, second}
  const [trouble, setTrouble] = useState(null);
  useEffect(() => {
    let isWanted = true; // until another pair is chosen
    tokensOf(pair.map((i) => texts[i])).then(
      ([first, second]) => isWanted && (setTrouble(null), setTokens({ of: pair, first, second })),
      (error) => isWanted && setTrouble(error.message),
    );
    return () => (isWanted = false);
  }, [texts, pair]);

  return html`
    <h2>Why texts ${pair[0] + 1} and ${pair[1] + 1} are similar</h2>
    <p class="hint">
      With mean pooling, the cosine of two texts is exactly the sum of what each pair of tokens adds. The numbers are
      thousandths.
    </p>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${tokens?.of === pair && html`<${Contributions} first=${tokens.first} second=${tokens.second} similarity=${similarity} />`}
  `;
}

function Contributions({ first, second, similarity }) {
  const { isDark } = useColours();
  const { total, shown, largest } = useMemo(() => {
    const [rows, columns] = [first, second].map(({ vectors }) => vectors.slice(0, MAX_TOKENS));
    const shown = contributions(rows, columns, first.vectors, second.vectors);
    const largest = Math.max(...shown.flat().map(Math.abs));
    return { total: meanCosine(first.vectors, second.vectors), shown, largest };
  }, [first, second]);
  const isWhole = first.tokens.length <= MAX_TOKENS && second.tokens.length <= MAX_TOKENS;
  const isOther = Math.abs(total - similarity) > ROUNDING;
  return html`
    <p>Sum of all pairs, which is the cosine of mean pooling: <output class="sum">${total.toFixed(4)}</output></p>
    ${
      isOther &&
      html`<p class="hint">
      The table above has ${similarity.toFixed(4)}, because its vectors are not the means of these tokens: they are
      pooled in another way, cut to fewer dimensions, or changed after the pooling.
    </p>`
    }
    ${!isWhole && html`<p class="hint">Only the first ${MAX_TOKENS} tokens of each text are shown; the sum counts all.</p>`}
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
