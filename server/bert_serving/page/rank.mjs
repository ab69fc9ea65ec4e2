// Rank texts for a query, with a reranker.

import { post } from "./api.mjs";
import { html, useState } from "./html.mjs";

export function Rank() {
  const [query, setQuery] = useState("How do I reset my password?");
  const [text, setText] = useState(
    "Choose “Forgot password” on the first page.\nOur office is open from nine to five.\nPasswords have at least 12 characters.",
  );
  const [ranking, setRanking] = useState(null);
  const [trouble, setTrouble] = useState(null);

  const rank = async (event) => {
    event.preventDefault();
    setTrouble(null);
    const texts = text.split("\n").filter((line) => line.trim());
    try {
      const found = await (await post("/rerank", { query, texts })).json();
      setRanking(found.map(({ index, score }) => ({ text: texts[index], score })));
    } catch (error) {
      setTrouble(error.message);
    }
  };

  return html`
    <form onSubmit=${rank}>
      <label>Query <input value=${query} required onInput=${(event) => setQuery(event.target.value)} /></label>
      <label>Texts, one in a line <textarea rows="6" value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
      <button type="submit">Rank</button>
    </form>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${ranking && html`<${Scores} name="text" scores=${ranking.map(({ text, score }) => [text, score])} />`}
  `;
}

/** A table of scores with bars. scores: [text, number from 0 to 1]. */
export function Scores({ name, scores }) {
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Scores">
      <table class="scores">
        <thead><tr><th scope="col">${name}</th><th scope="col">score</th><td></td></tr></thead>
        <tbody>
          ${scores.map(
            ([text, score]) => html`
              <tr>
                <th scope="row">${text}</th>
                <td>${score.toFixed(4)}</td>
                <td><span class="bar" style=${{ width: `${Math.max(0, Math.min(1, score)) * 12}rem` }}></span></td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}
