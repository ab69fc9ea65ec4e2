// A map of up to 5,000 texts: similar ones lie together. Texts and vectors stay in this tab.

import { patiently, vectorsOf } from "./api.mjs";
import { save, shortened } from "./format.mjs";
import { html, useEffect, useRef, useState } from "./html.mjs";
import { coloursOf, Legend } from "./palette.mjs";
import { drawing, Scatter } from "./scatter.mjs";
import { readTable, rowsOfText } from "./table.mjs";
import { poolingOf } from "./try.mjs";
import { dots, npyOf, unitRows } from "./vectors.mjs";

const MAX_TEXTS = 5000;
const BATCH = 250; // texts of a request
const AT_ONCE = 3; // requests, so that the server computes while a reply is on its way
const NUM_FOUND = 10;

export function MapOfTexts({ facts, isShown }) {
  const [text, setText] = useState("");
  const [table, setTable] = useState(null); // a file: {name, columns, rows}
  const [textColumn, setTextColumn] = useState("");
  const [colourColumn, setColourColumn] = useState("");
  const [map, setMap] = useState(null);
  const [progress, setProgress] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);

  const open = async (event) => {
    const file = event.target.files[0];
    event.target.value = ""; // so that the same file can be chosen again
    if (!file) return;
    try {
      const read = await readTable(file);
      setTable(read);
      setTextColumn(read.textColumn);
      setColourColumn("");
      setTrouble(null);
    } catch (error) {
      setTrouble(error.message);
    }
  };

  const make = async (event) => {
    event.preventDefault();
    const column = table ? textColumn : "text";
    const all = (table ? table.rows : rowsOfText(text)).filter((row) => row[column]?.trim());
    const rows = all.slice(0, MAX_TEXTS);
    if (rows.length < 2) return setTrouble("A map needs at least two texts.");
    running.current?.abort();
    const run = (running.current = new AbortController());
    const ifCurrent = (update) => (value) => run.signal.aborted || update(value);
    setTrouble(all.length > MAX_TEXTS ? `Only the first ${MAX_TEXTS} of ${all.length} texts are shown.` : null);
    setMap(null);
    const texts = rows.map((row) => row[column]);
    try {
      const settings = { options: poolingOf("", facts) };
      const encoded = await encodeAll(
        texts,
        settings,
        run,
        ifCurrent((share) => setProgress(["Encoding", share])),
      );
      const unit = unitRows(encoded.rows, encoded.width);
      setMap({ texts, rows, unit, width: encoded.width, settings, places: null, method: null });
      place(unit, encoded.width, run.signal, {
        onPlaces: ifCurrent(({ method, places }) => setMap((before) => before && { ...before, method, places })),
        onProgress: ifCurrent(setProgress),
        onTrouble: ifCurrent(setTrouble),
      });
    } catch (error) {
      if (error.name !== "AbortError") [setProgress(null), setTrouble(error.message)];
    }
  };

  const stop = () => (running.current.abort(), setProgress(null));

  return html`
    <form onSubmit=${make}>
      <div class="columns">
        <label>
          Texts, one in a line (at most ${MAX_TEXTS})
          <textarea rows="5" value=${text} disabled=${table !== null} onInput=${(event) => setText(event.target.value)}></textarea>
        </label>
        <div>
          <label>
            or a file: text, CSV, TSV or lines of JSON
            <input type="file" accept=".txt,.csv,.tsv,.jsonl,.ndjson,text/*" onChange=${open} />
          </label>
          ${
            table &&
            html`
            <div class="fields">
              <${Choice} label="Text" columns=${table.columns} value=${textColumn} onChange=${setTextColumn} />
              <${Choice} label="Colour" columns=${["", ...table.columns]} value=${colourColumn} onChange=${setColourColumn} />
              <button type="button" class="outline small" onClick=${() => setTable(null)}>Remove the file</button>
            </div>
            <p class="hint">${table.rows.length} rows in ${table.name}. The file stays in the browser; only the texts are sent, to be encoded.</p>
          `
          }
        </div>
      </div>
      <button type="submit">Make the map</button>
      ${progress && html`<${Progress} progress=${progress} onStop=${stop} />`}
    </form>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    ${map?.places && html`<${MapView} map=${map} colourColumn=${colourColumn} isShown=${isShown} />`}
  `;
}

function Choice({ label, columns, value, onChange }) {
  return html`
    <label>
      ${label}
      <select value=${value} onChange=${(event) => onChange(event.target.value)}>
        ${columns.map((name) => html`<option value=${name}>${name || "none"}</option>`)}
      </select>
    </label>
  `;
}

function Progress({ progress: [what, share], onStop }) {
  return html`
    <div class="progress">
      <label>${what}: ${Math.round(share * 100)} % <progress value=${share} max="1"></progress></label>
      <button type="button" class="outline small" onClick=${onStop}>Stop</button>
    </div>
  `;
}

function MapView({ map, colourColumn, isShown }) {
  const { texts, rows, unit, width, settings, places, method } = map;
  const [query, setQuery] = useState("");
  const [found, setFound] = useState(null);
  const [trouble, setTrouble] = useState(null);
  const colours = coloursOf(colourColumn ? rows.map((row) => row[colourColumn]) : null);

  const search = async (event) => {
    event.preventDefault();
    setTrouble(null);
    if (!query.trim()) return setFound(null);
    try {
      const encoded = await vectorsOf([query], settings);
      const scores = dots(unitRows(encoded.rows, width), unit);
      const best = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, NUM_FOUND);
      setFound(best.map((index) => ({ index, score: scores[index] })));
    } catch (error) {
      setTrouble(error.message);
    }
  };

  return html`
    <div class="fields">
      <search>
        <form class="fields" onSubmit=${search}>
          <label>Search by meaning <input type="search" value=${query} onInput=${(event) => setQuery(event.target.value)} /></label>
          <button type="submit">Search</button>
        </form>
      </search>
      <button type="button" class="outline small" onClick=${() => save("vectors.npy", npyOf(unit, width), "application/octet-stream")}>
        Vectors (.npy)
      </button>
      <button type="button" class="outline small" onClick=${() => save("map.svg", [drawing(places, texts, colours)], "image/svg+xml")}>
        Picture (.svg)
      </button>
    </div>
    ${trouble && html`<p role="alert" class="error">${trouble}</p>`}
    <p class="hint" role="status">
      ${texts.length} texts, placed by ${method}. Drag to move, turn the wheel to zoom, or use the arrow keys, + and −.
      Comma and full stop step through the texts. The axes have no meaning; only what lies together has.
    </p>
    <${Legend} colours=${colours} />
    <${Scatter} places=${places} texts=${texts} colours=${colours} found=${found} isShown=${isShown} />
    ${
      found &&
      html`<ol class="found">${found.map(({ index, score }) => html`<li>${score.toFixed(3)} ${shortened(texts[index], 200)}</li>`)}</ol>`
    }
  `;
}

/** Return {rows, width} of all texts. run: is aborted if one request fails. onShare: gets the part that is encoded.
 *
 * A server that has no room now is asked again. Throws CallError or AbortError. */
async function encodeAll(texts, settings, run, onShare) {
  let next = 0;
  let numDone = 0;
  let all = null;
  let width = 0;
  onShare(0);
  const work = async () => {
    while (next < texts.length) {
      const start = next;
      const batch = texts.slice(start, (next += BATCH));
      const encoded = await patiently(() => vectorsOf(batch, settings, run.signal), run.signal);
      width = encoded.width;
      all ??= new Float32Array(texts.length * width);
      all.set(encoded.rows, start * width);
      onShare((numDone += batch.length) / texts.length);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } catch (error) {
    run.abort();
    throw error;
  }
  return { rows: all, width };
}

/** Place vectors on a plane in a worker: by PCA first, which is fast, then by UMAP. */
function place(rows, width, signal, { onPlaces, onProgress, onTrouble }) {
  const worker = new Worker(new URL("map_worker.js", import.meta.url));
  signal.addEventListener("abort", () => worker.terminate());
  onProgress(["PCA", 0]);
  worker.onmessage = ({ data: { method, places, progress, isLast } }) => {
    if (places) onPlaces({ method, places });
    onProgress(isLast ? null : ["UMAP", method === "UMAP" ? progress : 0]);
    if (isLast) worker.terminate();
  };
  worker.onerror = (event) => {
    onProgress(null);
    onTrouble(`The map could not be made: ${event.message}`);
  };
  worker.postMessage({ rows, width });
}
