// Points on a canvas, which stays smooth with thousands of them, and as an SVG drawing.

import { useColours } from "./chart.mjs";
import { shortened } from "./format.mjs";
import { html, useEffect, useRef, useState } from "./html.mjs";

const RADIUS = 3;
const REACH = 12; // pixels within which a point is hit
const MARGIN = 20;
const WHOLE = { zoom: 1, x: 0, y: 0 };

/** places: [x, y, x, y, ...]. found: [{index, score}] to show larger, or null. */
export function Scatter({ places, texts, colours, found, isShown }) {
  const canvas = useRef();
  const [view, setView] = useState(WHOLE);
  const [chosen, setChosen] = useState(null);
  const [size, setSize] = useState([0, 0]);
  const pointers = useRef(new Map()); // that are pressed: their places by their ids
  const pressedAt = useRef([0, 0]);
  const { isDark } = useColours();
  const project = projection(places, size, view);

  useEffect(() => {
    const resized = new ResizeObserver(([{ contentRect }]) => setSize([contentRect.width, contentRect.height]));
    resized.observe(canvas.current);
    return () => resized.disconnect();
  }, []);
  useEffect(() => {
    if (!isShown || !size[0]) return;
    const frame = requestAnimationFrame(() =>
      draw(canvas.current, { places, project, colours, found, chosen, isDark, size }),
    );
    return () => cancelAnimationFrame(frame);
  });

  const at = (event) => [event.offsetX, event.offsetY];
  const zoom = (factor, [x, y] = [size[0] / 2, size[1] / 2]) =>
    setView((v) => ({ zoom: v.zoom * factor, x: x - (x - v.x) * factor, y: y - (y - v.y) * factor }));
  const move = (x, y) => setView((v) => ({ ...v, x: v.x + x, y: v.y + y }));
  const step = (by) => setChosen((before) => ((before ?? (by > 0 ? -1 : 0)) + by + texts.length) % texts.length);

  const keys = {
    "+": () => zoom(1.25),
    "=": () => zoom(1.25),
    "-": () => zoom(0.8),
    ArrowLeft: () => move(40, 0),
    ArrowRight: () => move(-40, 0),
    ArrowUp: () => move(0, 40),
    ArrowDown: () => move(0, -40),
    ".": () => step(1),
    ",": () => step(-1),
    Escape: () => setChosen(null),
  };
  const onKeyDown = (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  };
  const onPointerDown = (event) => {
    event.target.setPointerCapture(event.pointerId);
    pointers.current.set(event.pointerId, at(event));
    pressedAt.current = at(event);
  };
  const onPointerMove = (event) => {
    const before = pointers.current.get(event.pointerId);
    if (!before) return setChosen(hit(places, project, at(event)));
    const other = [...pointers.current].find(([id]) => id !== event.pointerId)?.[1];
    pointers.current.set(event.pointerId, at(event));
    if (other) return zoom(distance(at(event), other) / distance(before, other), other);
    move(at(event)[0] - before[0], at(event)[1] - before[1]);
  };
  const onPointerUp = (event) => {
    pointers.current.delete(event.pointerId);
    // A finger cannot point without pressing: a short press chooses the point below it.
    if (distance(at(event), pressedAt.current) < REACH / 2) setChosen(hit(places, project, at(event)));
  };
  const onPointerCancel = (event) => pointers.current.delete(event.pointerId);
  const onWheel = (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, at(event));
  };

  const tip = chosen === null || chosen >= texts.length ? null : project(chosen);
  return html`
    <div class="plot">
      <canvas
        ref=${canvas} tabindex="0" role="application" aria-label="Map of ${texts.length} texts"
        aria-describedby="chosen-text" onKeyDown=${onKeyDown} onPointerMove=${onPointerMove} onPointerDown=${onPointerDown}
        onPointerUp=${onPointerUp} onPointerCancel=${onPointerCancel} onWheel=${onWheel}
        onPointerLeave=${(event) => event.pointerType === "mouse" && setChosen(null)}
      ></canvas>
      <div class="zoom">
        <button type="button" class="secondary small" aria-label="Larger" onClick=${() => zoom(1.5)}>+</button>
        <button type="button" class="secondary small" aria-label="Smaller" onClick=${() => zoom(1 / 1.5)}>−</button>
        <button type="button" class="secondary small" onClick=${() => setView(WHOLE)}>Whole</button>
      </div>
      <div id="chosen-text" aria-live="polite">
        ${tip && html`<div class="tip" style=${tipStyle(tip, size)}>${shortened(texts[chosen], 300)}</div>`}
      </div>
    </div>
  `;
}

function distance([x, y], [otherX, otherY]) {
  return Math.hypot(x - otherX, y - otherY);
}

function tipStyle([x, y], [width, height]) {
  const side = x < width / 2 ? { left: `${x + 12}px` } : { right: `${width - x + 12}px` };
  return y < height / 2 ? { ...side, top: `${y + 8}px` } : { ...side, bottom: `${height - y + 8}px` };
}

/** Return a function from the index of a point to its pixels. */
function projection(places, [width, height], view) {
  const { left, top, span } = frameOf(places);
  const scale = Math.max(1, Math.min(width, height) - 2 * MARGIN) / span;
  const [shiftX, shiftY] = [(width - span * scale) / 2, (height - span * scale) / 2];
  return (i) => [
    ((places[2 * i] - left) * scale + shiftX) * view.zoom + view.x,
    ((places[2 * i + 1] - top) * scale + shiftY) * view.zoom + view.y,
  ];
}

/** Return the square around all points. */
function frameOf(places) {
  const low = [Infinity, Infinity];
  const high = [-Infinity, -Infinity];
  places.forEach((value, i) => {
    low[i % 2] = Math.min(low[i % 2], value);
    high[i % 2] = Math.max(high[i % 2], value);
  });
  const span = Math.max(high[0] - low[0], high[1] - low[1]) || 1;
  return { left: (low[0] + high[0] - span) / 2, top: (low[1] + high[1] - span) / 2, span };
}

/** Return the index of the point at a place, or null. */
function hit(places, project, [x, y]) {
  let best = null;
  let least = REACH ** 2;
  for (let i = 0; i < places.length / 2; i++) {
    const [px, py] = project(i);
    const square = (px - x) ** 2 + (py - y) ** 2;
    if (square < least) [best, least] = [i, square];
  }
  return best;
}

function draw(canvas, { places, project, colours, found, chosen, isDark, size: [width, height] }) {
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const dot = (i, radius, colour) => {
    const [x, y] = project(i);
    if (x < -radius || y < -radius || x > width + radius || y > height + radius) return;
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  };
  context.globalAlpha = found ? 0.25 : 0.75;
  for (let i = 0; i < places.length / 2; i++) dot(i, RADIUS, colours.of(i));
  context.globalAlpha = 1;
  for (const { index } of found ?? []) dot(index, 2 * RADIUS, colours.of(index));
  if (chosen !== null) {
    dot(chosen, 2.5 * RADIUS, isDark ? "#fff" : "#000");
    dot(chosen, 2 * RADIUS, colours.of(chosen));
  }
}

/** Return the map as an SVG document. Each point has its text as title. */
export function drawing(places, texts, colours) {
  const size = [900, 900];
  const project = projection(places, size, WHOLE);
  const escaped = (text) =>
    text.replace(/[\u0000-\u001f]/g, " ").replace(/[<&]/g, (c) => (c === "<" ? "&lt;" : "&amp;"));
  const points = texts.map((text, i) => {
    const [x, y] = project(i).map((value) => value.toFixed(1));
    return `<circle cx="${x}" cy="${y}" r="${RADIUS}" fill="${colours.of(i)}" fill-opacity="0.75"><title>${escaped(shortened(text, 200))}</title></circle>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.join(" ")}">\n${points.join("\n")}\n</svg>\n`;
}
