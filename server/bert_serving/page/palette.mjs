// Colours of points: one for each of a few values, or from light to dark for numbers.

import { shortened } from "./format.mjs";
import { html } from "./html.mjs";

// Told apart also by people who do not see all colours (after Okabe and Ito), and visible on light and on dark.
const COLOURS = [
  "#0072b2",
  "#e69f00",
  "#009e73",
  "#cc79a7",
  "#56b4e9",
  "#d55e00",
  "#8c6bb1",
  "#a6761d",
  "#b2b200",
  "#1b9e77",
];
const ONE = "#3b8eea";
const OTHER = "#8a929c";
const MAX_NUMBERS = 12; // more different numbers than this are a scale

/** Return {of, names}: the colour of each point, and what the colours mean. values: null for one colour. */
export function coloursOf(values) {
  if (!values) return { of: () => ONE, names: [] };
  const numbers = values.map((value) => (value?.trim() ? Number(value) : NaN));
  const kinds = [...new Set(values.map(String))];
  if (kinds.length > MAX_NUMBERS && numbers.every(Number.isFinite)) return scale(numbers);
  const frequency = new Map();
  for (const value of values) frequency.set(String(value), (frequency.get(String(value)) ?? 0) + 1);
  const frequent = [...frequency.keys()]
    .sort((a, b) => frequency.get(b) - frequency.get(a))
    .slice(0, COLOURS.length);
  const colour = new Map(frequent.map((value, i) => [value, COLOURS[i]]));
  const names = frequent.map((value) => [value, colour.get(value)]);
  if (kinds.length > frequent.length) names.push([`${kinds.length - frequent.length} others`, OTHER]);
  return { of: (i) => colour.get(String(values[i])) ?? OTHER, names };
}

function scale(numbers) {
  const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
  const at = (share) => `hsl(${60 + 200 * share} 75% ${60 - 22 * share}%)`;
  const names = [0, 0.5, 1].map((share) => [
    String(Number((low + share * (high - low)).toPrecision(4))),
    at(share),
  ]);
  return { of: (i) => at((numbers[i] - low) / (high - low)), names };
}

export function Legend({ colours }) {
  if (!colours.names.length) return null;
  return html`
    <ul class="legend map-legend">
      ${colours.names.map(([name, colour]) => html`<li><i class="swatch" style=${{ background: colour, height: "0.7rem" }}></i>${shortened(name, 30)}</li>`)}
    </ul>
  `;
}
