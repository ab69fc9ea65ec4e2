// The labels of a text, if the model has labels.

import { post } from "./api.mjs";
import { html, useState } from "./html.mjs";
import { Scores } from "./rank.mjs";

export function Classify() {
  const [text, setText] = useState("I like this very much.");
  const [scores, setScores] = useState(null);
  const [trouble, setTrouble] = useState(null);

  const classify = async (event) => {
    event.preventDefault();
    setTrouble(null);
    try {
      const found = await (await post("/predict", { inputs: text })).json();
      setScores(found.map(({ label, score }) => [label, score]));
    } catch (error) {
      setTrouble(error.message);
    }
  };

  return html`
    <form onSubmit=${classify}>
      <label>Text <textarea rows="3" required value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
      <button type="submit">Classify</button>
    </form>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${scores && html`<${Scores} name="label" scores=${scores} />`}
  `;
}
