// The points of the last minutes, as the server sends them. See broker/history.py for what they are.

import { recent } from "./chart.mjs";

const MINUTES = 15;

export class History {
  constructor() {
    this.state = { workers: [] };
    this.points = [];
    this.fields = [];
  }

  /** Add an event of /page/live. A server that was started again begins anew, and its points follow the old ones. */
  add(event) {
    this.state = event;
    if (!event.points) return;
    this.fields = event.fields;
    const newest = this.points.at(-1)?.[0] ?? 0;
    this.points.push(...event.points.filter(([time]) => time > newest));
    const oldest = (this.points.at(-1)?.[0] ?? 0) - MINUTES * 60;
    this.points = this.points.filter(([time]) => time >= oldest);
  }

  /** Return the values of a field. */
  column(field) {
    const place = this.fields.indexOf(field);
    return this.points.map((point) => point[place]);
  }

  /** Return the newest value of a field that is not null, among the last few points. */
  newest(field) {
    return recent(this.column(field));
  }

  /** Return the number of each error code over all points, the most frequent first. */
  errors() {
    const total = {};
    for (const errors of this.column("errors"))
      for (const [code, number] of Object.entries(errors)) total[code] = (total[code] ?? 0) + number;
    return Object.entries(total).sort((a, b) => b[1] - a[1]);
  }

  /** Return [time, state, busy share] of one worker at each point. */
  timeline(index) {
    const times = this.column("time");
    return this.column("workers").map((workers, i) => [times[i], ...(workers[index] ?? ["starting", 0])]);
  }
}
