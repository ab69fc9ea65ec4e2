// A matrix of similarities, as a table whose cells are coloured.

import { useColours } from "./chart.mjs";
import { html, useRef } from "./html.mjs";

/** Return the style of a cell. share: from -1 to 1. */
export function shade(share, isDark) {
  const strength = Math.min(1, Math.abs(share));
  const [hue, light] = [share < 0 ? 15 : 215, isDark ? 18 + 22 * strength : 97 - 33 * strength];
  return { background: `hsl(${hue} 65% ${light}%)`, color: isDark ? "#fff" : "#10151c" };
}

/** The similarity of each pair. pair: the one that is chosen; onChoose: gets [row, column]. */
export function Heatmap({ labels, matrix, pair, onChoose }) {
  const { isDark } = useColours();
  const table = useRef();
  const stop = pair ?? [0, 1]; // the cell that the key Tab leads to; arrows lead to the others
  const move = (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const place = event.target.dataset.place?.split(",").map(Number);
    if (!step || !place) return;
    event.preventDefault();
    let [i, j] = place;
    do [i, j] = [i + step[0], j + step[1]];
    while (i === j); // the diagonal has no button
    table.current.querySelector(`[data-place="${i},${j}"]`)?.focus();
  };
  const isChosen = (i, j) => pair && ((pair[0] === i && pair[1] === j) || (pair[0] === j && pair[1] === i));
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Similarities">
      <table class="matrix" ref=${table} onKeyDown=${move}>
        <thead><tr><td></td>${labels.map((label) => html`<th scope="col">${label}</th>`)}</tr></thead>
        <tbody>
          ${matrix.map(
            (row, i) => html`
              <tr>
                <th scope="row">${labels[i]}</th>
                ${row.map((value, j) =>
                  i === j
                    ? html`<td><span class="cell" style=${shade(value, isDark)}>1</span></td>`
                    : html`<td>
                        <button
                          type="button" data-place="${i},${j}" tabindex=${i === stop[0] && j === stop[1] ? 0 : -1} style=${shade(value, isDark)} aria-pressed=${Boolean(isChosen(i, j))}
                          aria-label="texts ${labels[i]} and ${labels[j]}: ${value.toFixed(3)}" onClick=${() => onChoose([i, j])}
                        >${value.toFixed(2)}</button>
                      </td>`,
                )}
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}
