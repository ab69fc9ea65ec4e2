// The points of the last minutes, as the server sends them. See broker/history.py for what they are.

import { recent } from "./chart.mjs";

const MINUTES = 15;

export class History {
  constructor() {
    this.state = { workers: [] };
    this.points = [];
    this.fields = [];
    this.started = null;
    this.lastId = 0;
  }

  /** Add an event of /page/live. If the server does not reply, the event has no workers: the last ones stay. */
  add(event) {
    this.state = { queue_capacity: this.state.queue_capacity, workers: this.state.workers, ...event };
    if (!event.points?.length) return;
    this.fields = event.fields;
    const [id, time] = ["id", "time"].map((field) => this.fields.indexOf(field));
    if (event.started !== this.started) [this.started, this.lastId] = [event.started, 0]; // another server
    const added = event.points.filter((point) => point[id] > this.lastId);
    if (!added.length) return;
    this.lastId = added.at(-1)[id];
    const [first, last] = [added[0][time], added.at(-1)[time]];
    // After the clock of the server was set back, points of the future would stand in the way of new ones.
    this.points = this.points.filter((point) => point[time] < first && point[time] >= last - MINUTES * 60);
    this.points.push(...added);
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
