// Curves of the last minutes, drawn by uPlot.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./html.mjs";

/* global uPlot */

const HEIGHT = 130;
const SPAN_S = 900;
const RECENT = 5; // points

/** Return the value of a colour in the present colour scheme; the component is drawn again when the scheme changes. */
export function useColours() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const [isDark, setDark] = useState(dark.matches);
  useEffect(() => {
    const changed = (event) => setDark(event.matches);
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  const style = getComputedStyle(document.documentElement);
  return { isDark, of: (name) => style.getPropertyValue(`--${name}`).trim() };
}

/** Curves over time. series: [{label, values, colour, scale}], colour: the name of a CSS variable. */
export function Chart({ title, times, series, format, isShown, max = null }) {
  const place = useRef();
  const plot = useRef();
  const colours = useColours();

  useLayoutEffect(() => {
    const axis = {
      stroke: colours.of("muted"),
      grid: { stroke: colours.of("grid"), width: 1 },
      ticks: { show: false },
    };
    plot.current = new uPlot(
      {
        width: place.current.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false } },
        scales: {
          x: { range: (plot, low, high) => [high - SPAN_S, high] },
          y: { range: (_, low, high) => [0, max ?? (high > 0 ? high * 1.1 : 1)] },
        },
        axes: [
          { ...axis, size: 28, values: (_, ticks) => ticks.map(clock) },
          { ...axis, size: 60, values: (_, ticks) => ticks.map(format) },
        ],
        series: [
          {},
          ...series.map(({ label, colour }) => ({
            label,
            stroke: colours.of(colour),
            width: 2,
            points: { size: 4, filter: alone },
          })),
        ],
      },
      [times, ...series.map(({ values }) => values)],
      place.current,
    );
    const resized = new ResizeObserver(([entry]) => {
      if (entry.contentRect.width > 0) plot.current.setSize({ width: entry.contentRect.width, height: HEIGHT });
    });
    resized.observe(place.current);
    return () => (resized.disconnect(), plot.current.destroy());
  }, [colours.isDark]);

  useEffect(() => {
    if (isShown) plot.current.setData([times, ...series.map(({ values }) => values)]);
  }, [times.at(-1), times.length, isShown]);

  const newest = series.map(({ label, values }) => `${label} ${format(recent(values))}`);
  return html`
    <figure class="chart">
      <figcaption>
        ${title}
        <ul class="legend">
          ${series.map(({ colour }, i) => html`<li><i class="swatch ${colour}"></i>${newest[i]}</li>`)}
        </ul>
      </figcaption>
      <div ref=${place} role="img" aria-label="${title}: ${newest.join(", ")}"></div>
    </figure>
  `;
}

/** Return the newest value that is not null, among the last few; null if there is none. */
export function recent(values) {
  return values.slice(-RECENT).findLast((value) => value !== null) ?? null;
}

/** Return the indices of the values between two gaps: they are no line, so they are drawn as points. */
function alone(plot, series) {
  const values = plot.data[series];
  const isGap = (i) => (values[i] ?? null) === null;
  return values.map((_, i) => i).filter((i) => !isGap(i) && isGap(i - 1) && isGap(i + 1));
}

function clock(time) {
  return new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}
