// The page: asks for the API key if there is one, follows the server, and shows one of the tabs.

import { follow, hasKey, root, setKey } from "./api.mjs";
import { Classify } from "./classify.mjs";
import { History } from "./history.mjs";
import { html, render, useEffect, useMemo, useRef, useState } from "./html.mjs";
import { MapOfTexts } from "./map.mjs";
import { Now } from "./now.mjs";
import { Rank } from "./rank.mjs";
import { Try } from "./try.mjs";

const TABS = [
  { name: "Now", view: Now, serves: () => true },
  { name: "Try", view: Try, serves: (kind) => kind === "embedding" },
  { name: "Map", view: MapOfTexts, serves: (kind) => kind === "embedding" },
  { name: "Rank", view: Rank, serves: (kind) => kind === "reranker" },
  {
    name: "Classify",
    view: Classify,
    serves: (kind, facts) => kind === "classifier" || facts?.labels?.length > 1,
  },
];

function App() {
  const history = useRef(new History());
  const known = useRef();
  const [server, setServer] = useState({ isConnected: false, trouble: null, needsKey: false });
  const [attempt, setAttempt] = useState(0);
  const [tab, setTab] = useTab();

  useEffect(() => {
    const following = follow(
      (event) => {
        history.current.add(event);
        setServer({ ...history.current.state, isConnected: true, trouble: null, needsKey: false });
      },
      (message, status) =>
        setServer((before) => ({ ...before, isConnected: false, trouble: message, needsKey: status === 401 })),
    );
    return following.stop;
  }, [attempt]);

  if (server.needsKey) {
    return html`<${KeyForm} wasWrong=${hasKey()} onKey=${(key) => (setKey(key), setAttempt(attempt + 1))} />`;
  }
  if (!server.workers) return html`<${Header} server=${server} />`; // nothing was received yet
  // While no worker is ready, nothing is known of the model: what the user has typed and made must stay.
  const found = server.workers.find((worker) => worker.kind);
  if (found && found.fingerprint !== known.current?.fingerprint) known.current = found;
  const facts = known.current;
  const tabs = TABS.filter(({ serves }) => serves(facts?.kind, facts));
  const chosen = tabs.find(({ name }) => name === tab) ?? tabs[0];
  return html`
    <${Header} server=${server} />
    <main class="container-fluid">
      <${TabList} tabs=${tabs} chosen=${chosen} onChoose=${setTab} />
      ${tabs.map(
        ({ name, view }) => html`
          <${Panel}
            key=${name} name=${name} view=${view} isShown=${name === chosen.name} facts=${facts} server=${server}
            history=${history.current}
          />
        `,
      )}
    </main>
  `;
}

function Header({ server }) {
  return html`
    <header class="container-fluid">
      <h1>bert-embedding-service</h1>
      <${Status} server=${server} />
      <nav aria-label="Pages">
        <a href="${root}/docs">HTTP reference</a>
        ${hasKey() && html`<button class="outline small" onClick=${() => (setKey(""), location.reload())}>Forget key</button>`}
      </nav>
    </header>
  `;
}

/** A tab. Only Now shows each event; the others are large, and would be compared with the page each time. */
function Panel({ name, view, isShown, facts, server, history }) {
  const content = useMemo(
    () => html`<${view} server=${server} history=${history} facts=${facts} isShown=${isShown} />`,
    [view, facts, isShown, view === Now && isShown && server],
  );
  return html`
    <section id="panel-${name}" role="tabpanel" aria-labelledby="tab-${name}" hidden=${!isShown}>${content}</section>
  `;
}

/** Keep the name of the tab in the address, so that a link leads to it. */
function useTab() {
  const read = () => location.hash.slice(1);
  const [tab, setTab] = useState(read());
  useEffect(() => {
    const changed = () => setTab(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  // Not location.hash: that moves the place from which the key Tab goes on to the top of the page.
  const choose = (name) => (window.history.replaceState(null, "", `#${name}`), setTab(name));
  return [tab, choose];
}

function TabList({ tabs, chosen, onChoose }) {
  const list = useRef();
  const move = (event) => {
    const place = tabs.indexOf(chosen);
    const places = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: -1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    const next = tabs.at(places[event.key] % tabs.length);
    onChoose(next.name);
    list.current.querySelector(`#tab-${next.name}`).focus();
  };
  return html`
    <div role="tablist" aria-label="Views" ref=${list} onKeyDown=${move}>
      ${tabs.map(
        ({ name }) => html`
          <button
            role="tab"
            id="tab-${name}"
            aria-controls="panel-${name}"
            aria-selected=${name === chosen.name}
            tabindex=${name === chosen.name ? 0 : -1}
            onClick=${() => onChoose(name)}
          >
            ${name}
          </button>
        `,
      )}
    </div>
  `;
}

function Status({ server }) {
  const [kind, text] = statusOf(server);
  return html`<p class="status ${kind}" role="status">${text}</p>`;
}

function statusOf(server) {
  if (!server.isConnected)
    return server.trouble ? ["bad", `No connection: ${server.trouble}`] : ["waiting", "Connecting"];
  if (server.ready) return ["good", "Ready"];
  if (server.reason) return ["bad", `Not ready: ${server.reason}`];
  const waiting = server.workers.filter((worker) => worker.state !== "ready");
  return [
    "waiting",
    `Not ready: ${waiting.map(({ name, state }) => `${name} is ${state}`).join(", ") || "the server is stopping"}`,
  ];
}

function KeyForm({ wasWrong, onKey }) {
  const field = useRef();
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    onKey(event.target.elements.key.value.trim());
  };
  return html`
    <main class="container key">
      <h1>bert-embedding-service</h1>
      <form onSubmit=${submit}>
        <label>
          API key
          <input
            ref=${field} name="key" type="password" autocomplete="off" required pattern="[!-~]+"
            title="letters, digits and signs of ASCII, without spaces" aria-describedby="about-key"
          />
        </label>
        <p id="about-key">This server requires an API key. It stays in this tab, and is forgotten when you close it.</p>
        ${wasWrong && html`<p role="alert" class="error">The server does not accept this key.</p>`}
        <button type="submit">Open</button>
      </form>
    </main>
  `;
}

const place = document.getElementById("app");
place.replaceChildren();
render(html`<${App} />`, place);
