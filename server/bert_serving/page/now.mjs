// What the server does now, and what it did in the last 15 minutes.

import { Chart } from "./chart.mjs";
import { count, percent, seconds } from "./format.mjs";
import { html } from "./html.mjs";

const STAGES = [
  ["request", "whole request"],
  ["queue", "in the queue"],
  ["tokenize", "tokenize a batch"],
  ["compute", "compute a batch"],
];

export function Now({ server, history, isShown }) {
  const times = history.column("time");
  const chart = (title, format, series, max) =>
    html`<${Chart} title=${title} times=${times} format=${format} isShown=${isShown} max=${max} series=${series.map(
      ([label, field, colour]) => ({ label, colour, values: history.column(field) }),
    )} />`;
  return html`
    <${Tiles} history=${history} capacity=${server.queue_capacity} />
    <div class="charts">
      ${chart("Texts and requests per second", count, [
        ["texts", "texts", "line-1"],
        ["requests", "requests", "line-2"],
      ])}
      ${chart("Tokens per second", count, [["tokens", "tokens", "line-1"]])}
      ${STAGES.map(([stage, title]) =>
        chart(`Time: ${title}`, seconds, [
          ["p50", `${stage}_p50`, "line-1"],
          ["p99", `${stage}_p99`, "line-2"],
        ]),
      )}
      ${chart("Texts in the queue", count, [["texts", "queue_texts", "line-1"]])}
      ${chart("Age of the oldest request in the queue", seconds, [["age", "queue_age", "line-1"]])}
      ${chart(
        "Batches: fill and padding",
        percent,
        [
          ["fill", "batch_fill", "line-1"],
          ["padding", "padding_share", "line-2"],
        ],
        1,
      )}
      ${chart("Texts per second that were cut", count, [["cut", "truncated", "line-1"]])}
    </div>
    <${Workers} server=${server} history=${history} />
    <${Errors} errors=${history.errors()} />
  `;
}

function Tiles({ history, capacity }) {
  const tiles = [
    ["requests/s", count(history.newest("requests"))],
    ["texts/s", count(history.newest("texts"))],
    ["tokens/s", count(history.newest("tokens"))],
    ["texts in the queue", `${count(history.newest("queue_texts"))} of ${count(capacity)}`],
    ["oldest in the queue", seconds(history.newest("queue_age"))],
    ["request, p99", seconds(history.newest("request_p99"))],
    ["memory for requests", percent(history.newest("held_share"))],
  ];
  return html`<dl class="tiles">${tiles.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Workers({ server, history }) {
  const workers = server.workers ?? [];
  return html`
    <h2>Workers</h2>
    <div class="scroll" tabindex="0" role="region" aria-label="Workers">
      <table>
        <thead>
          <tr>${["worker", "state", "the last 15 minutes", "device", "dtype", "forward pass", "parity", "model"].map((name) => html`<th scope="col">${name}</th>`)}</tr>
        </thead>
        <tbody>
          ${workers.map(
            (worker, i) => html`
              <tr>
                <th scope="row">${worker.name}</th>
                <td><span class="state ${worker.state}">${worker.state}</span></td>
                <td><${Timeline} name=${worker.name} points=${history.timeline(i)} /></td>
                <td>${worker.device ?? "–"}</td>
                <td>${worker.dtype ?? "–"}</td>
                <td>${worker.forward ?? "–"}</td>
                <td>${worker.parity?.toFixed(6) ?? "–"}</td>
                <td>${worker.fingerprint ? `${worker.kind}, ${worker.dimension} dimensions, ${worker.fingerprint}` : "–"}</td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
    <p class="hint">
      Parity is the smallest cosine between this worker's vectors and those of the model as Transformers runs it, in
      float32, for 14 texts when the worker started. In the timeline, the height is the share of the time in which the
      device computed. p50 and p99: half of the values, and 99 % of them, are below. Fill: tokens in a batch, as a part
      of a full one. Padding: computed tokens that belong to no text. A worker that is stale hangs.
    </p>
  `;
}

/** A bar for each point: its height is the busy share, its colour the state. */
function Timeline({ name, points }) {
  const width = 225;
  const newest = points.at(-1);
  if (!newest) return "–";
  const x = (time) => width - ((newest[0] - time) / 900) * width;
  const label = `${name}: computes ${percent(newest[2])} of the time, ${newest[1]}`;
  return html`
    <svg class="timeline" viewBox="0 0 ${width} 24" role="img" aria-label=${label}>
      <title>${label}</title>
      ${points.map(([time, state, busy]) => {
        const height = state === "ready" ? 1 + busy * 23 : 24;
        return html`<rect class=${state} x=${x(time) - 0.5} y=${24 - height} width="0.6" height=${height} />`;
      })}
    </svg>
  `;
}

function Errors({ errors }) {
  const title = html`<h2>Requests for vectors that failed</h2>`;
  const hint = html`<p class="hint">What HTTP refuses before it asks for vectors, such as a missing API key, is in /metrics only.</p>`;
  if (!errors.length) return html`${title}<p>None in the last 15 minutes.</p>${hint}`;
  return html`
    ${title}
    <table class="narrow">
      <thead><tr><th scope="col">code</th><th scope="col">requests in the last 15 minutes</th></tr></thead>
      <tbody>${errors.map(([code, number]) => html`<tr><th scope="row">${code}</th><td>${count(number)}</td></tr>`)}</tbody>
    </table>
    ${hint}
  `;
}
