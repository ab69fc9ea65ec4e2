// The same texts in other number formats and lengths: what the similarities lose, and what is saved.

import { vectorsOf } from "./api.mjs";
import { html, useState } from "./html.mjs";
import { nearest, similarities } from "./vectors.mjs";

export function Variants({ result }) {
  const { texts, options, encoded, matrix } = result;
  const [rows, setRows] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const half = Math.max(8, Math.floor(encoded.width / 2 / 8) * 8);
  const variants = [
    { name: "int8", settings: { options, output_dtype: "int8" } },
    { name: "bits", settings: { options, output_dtype: "ubinary" } },
    { name: `first ${half} components`, settings: { options: { ...options, dimensions: half } } },
    {
      name: `first ${half} components, int8`,
      settings: { options: { ...options, dimensions: half }, output_dtype: "int8" },
    },
    { name: "mean of the tokens", settings: { options: { ...options, pooling_strategy: "REDUCE_MEAN" } } },
    { name: "CLS token", settings: { options: { ...options, pooling_strategy: "CLS_TOKEN" } } },
  ];

  const compare = async () => {
    setBusy(true);
    setTrouble(null);
    try {
      setRows(
        await Promise.all(
          variants.map(async (each) => compared(each, matrix, await vectorsOf(texts, each.settings))),
        ),
      );
    } catch (error) {
      setTrouble(error.message);
    }
    setBusy(false);
  };

  return html`
    <h2>Number formats, lengths and poolings side by side</h2>
    <p class="hint">
      Each row is compared with the vectors above, ${encoded.width} components in float32, ${encoded.width * 4} bytes.
      Of bits, the similarity is the part of equal bits.
    </p>
    <button type="button" class="secondary small" aria-busy=${isBusy} disabled=${isBusy || texts.length < 3} onClick=${compare}>Compare</button>
    ${texts.length < 3 && html`<p class="hint">This needs three texts or more.</p>`}
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${
      rows &&
      html`
      <div class="scroll" tabindex="0" role="region" aria-label="Comparison">
        <table class="narrow variants">
          <thead>
            <tr>${["vectors", "bytes each", "mean change of a similarity", "largest change", "texts whose nearest neighbour stays"].map((name) => html`<th scope="col">${name}</th>`)}</tr>
          </thead>
          <tbody>
            ${rows.map(
              ({ name, bytes, mean, largest, kept }) => html`
                <tr><th scope="row">${name}</th><td>${bytes}</td><td>${mean.toFixed(4)}</td><td>${largest.toFixed(4)}</td><td>${kept} of ${texts.length}</td></tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    `
    }
  `;
}

function compared({ name, settings }, matrix, encoded) {
  const isBits = settings.output_dtype === "ubinary";
  const other = similarities(isBits ? { ...encoded, dtype: "bits" } : encoded);
  const changes = matrix.flatMap((row, i) =>
    row.slice(i + 1).map((value, j) => Math.abs(value - other[i][i + 1 + j])),
  );
  const [before, after] = [nearest(matrix), nearest(other)];
  return {
    name,
    bytes: encoded.width * encoded.rows.BYTES_PER_ELEMENT,
    mean: changes.reduce((sum, value) => sum + value, 0) / changes.length,
    largest: Math.max(...changes),
    kept: before.filter((value, i) => value === after[i]).length,
  };
}
