// The same texts in other number formats and lengths: what the similarities lose, and what is saved.

import { vectorsOf } from "./api.mjs";
import { html, useState } from "./html.mjs";
import { nearest, similarities } from "./vectors.mjs";

export function Variants({ result }) {
  const { texts, options, encoded, matrix } = result;
  const [rows, setRows] = useState(null);
  const [isBusy, setBusy] = useState(false);
  const half = Math.floor(encoded.width / 2);
  const cut = { ...options, dimensions: half };
  const variants = [
    { name: "int8", settings: { options, output_dtype: "int8" } },
    { name: "bits", settings: { options, output_dtype: "ubinary" }, numBits: encoded.width },
    { name: `first ${half} components`, settings: { options: cut } },
    { name: `first ${half} components, int8`, settings: { options: cut, output_dtype: "int8" } },
    { name: "mean of the tokens", settings: { options: { ...options, pooling_strategy: "REDUCE_MEAN" } } },
    { name: "CLS token", settings: { options: { ...options, pooling_strategy: "CLS_TOKEN" } } },
  ];

  const compare = async () => {
    setBusy(true);
    const row = async (each) => {
      try {
        return compared(each, matrix, await vectorsOf(texts, each.settings));
      } catch (error) {
        return { name: each.name, error: error.message };
      }
    };
    setRows(await Promise.all(variants.map(row)));
    setBusy(false);
  };

  return html`
    <h2>Number formats, lengths and poolings side by side</h2>
    <p class="hint">
      Each row is compared with the vectors above, ${encoded.width} components in float32, ${encoded.width * 4} bytes.
      The similarity of bits is 1 if all are equal, 0 if half of them are, and −1 if none is.
    </p>
    <button type="button" class="secondary small" aria-busy=${isBusy} disabled=${isBusy || texts.length < 3} onClick=${compare}>Compare</button>
    ${texts.length < 3 && html`<p class="hint">This needs three texts or more.</p>`}
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
              ({ name, error, bytes, mean, largest, kept }) => html`
                <tr>
                  <th scope="row">${name}</th>
                  ${error ? html`<td colspan="4" class="error">${error}</td>` : html`<td>${bytes}</td><td>${mean.toFixed(4)}</td><td>${largest.toFixed(4)}</td><td>${kept} of ${texts.length}</td>`}
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    `
    }
  `;
}

function compared({ name, numBits }, matrix, encoded) {
  const other = similarities({ ...encoded, numBits });
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
