// Token by token: a document as coloured text, as a map over tokens and layers, and one token's line.

const byId = (id) => document.getElementById(id);
// Plotly reads some markup in its labels, so that a token must not look like any.
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const visible = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ /, "·") || "∅";
const short = (token) => (token.length > 14 ? `${token.slice(0, 13)}…` : token);
const withUnit = (measure) => (measure.unit ? `${measure.label} (${measure.unit})` : measure.label);
const shown = (value) => (Number.isFinite(value) ? Number(value.toPrecision(4)).toString() : "no value");

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

const view = { store: 0, document: 0, measure: "", level: 0, token: 0 };

function decode(text) {
  return new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

// The values of the chosen measure as rows[level][token], decoded once.
const decoded = new Map();
function rowsOf(doc, name) {
  const key = `${view.store}/${view.document}/${name}`;
  if (!decoded.has(key)) {
    const flat = decode(doc.values[name]);
    const width = doc.tokens.length;
    decoded.set(key, Array.from({ length: flat.length / width }, (_, i) => flat.subarray(i * width, (i + 1) * width)));
  }
  return decoded.get(key);
}

const currentDocument = () => report.stores[view.store].documents[view.document];
const currentRows = () => rowsOf(currentDocument(), view.measure);

function quantile(values, share) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted.length ? sorted[Math.round(share * (sorted.length - 1))] : NaN;
}

// What colour means: from low to high, in the values' own scale (log10 where logarithmic).
function colourScale(measure, rows) {
  const log = measure.scale === "logarithmic";
  const place = (value) => (log ? Math.log10(value) : value);
  const finite = rows.flatMap((row) => Array.from(row, place)).filter(Number.isFinite);
  let [low, high] = [0, 1];
  if (finite.length) {
    [low, high] = [finite.reduce((a, b) => Math.min(a, b)), finite.reduce((a, b) => Math.max(a, b))];
  }
  const [lowest, highest] = [low, high];
  if (measure.scale === "logarithmic" || measure.scale === "linear") {
    // A few tokens, mostly the first, would otherwise use up all colours; the ends are marked.
    [low, high] = [quantile(finite, 0.05), quantile(finite, 0.95)];
  }
  if (measure.scale === "share") [low, high] = [0, 1];
  if (measure.scale === "linear") low = Math.min(0, low);
  if (measure.scale === "diverging") {
    high = Math.max(Math.abs(low), Math.abs(high), 0.05);
    low = -high;
  }
  if (!(high > low)) high = low + 1;
  const stops = measure.scale === "diverging" ? ["#0072b2", colours().middle, "#d55e00"] : VIRIDIS;
  return { log, place, low, high, stops, below: lowest < low, above: highest > high };
}

function colourOf(scale, value) {
  const at = (scale.place(value) - scale.low) / (scale.high - scale.low);
  if (!Number.isFinite(at)) return null;
  const steps = Math.min(Math.max(at, 0), 1) * (scale.stops.length - 1);
  const first = Math.min(Math.floor(steps), scale.stops.length - 2);
  const part = steps - first;
  const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const [a, b] = [channels(scale.stops[first]), channels(scale.stops[first + 1])];
  return a.map((channel, i) => Math.round(channel + (b[i] - channel) * part));
}

// Black or white letters, whichever stands out more.
const inkOn = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 135 ? "#111" : "#fff");

function drawText() {
  const doc = currentDocument();
  const row = currentRows()[view.level];
  const scale = colourScale(report.measures[view.measure], currentRows());
  const holder = byId("view-text");
  const spans = doc.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.textContent = token.includes("\n") ? token.replaceAll("\n", "⏎\n") : token;
    const colour = colourOf(scale, row[i]);
    if (colour) Object.assign(span.style, { background: `rgb(${colour})`, color: inkOn(colour) });
    span.dataset.token = i;
    span.tabIndex = i === view.token ? 0 : -1;
    span.title = `token ${i}, row ${doc.firstRow + i}: ${shown(row[i])}`;
    span.classList.toggle("chosen", i === view.token);
    return span;
  });
  holder.replaceChildren(...spans);
  if (doc.cut) holder.append(` … ${doc.cut} more tokens`);
}

function ticksOf(scale) {
  const value = (at) => Number((scale.log ? 10 ** at : at).toPrecision(2)).toString();
  const places = [0, 0.25, 0.5, 0.75, 1].map((share) => scale.low + share * (scale.high - scale.low));
  const marks = [scale.below ? "≤ " : "", "", "", "", scale.above ? "≥ " : ""];
  return { tickvals: places, ticktext: places.map((at, i) => marks[i] + value(at)) };
}

function drawMap() {
  const doc = currentDocument();
  const measure = report.measures[view.measure];
  const rows = currentRows();
  const scale = colourScale(measure, rows);
  const count = doc.tokens.length;
  const axis = { showgrid: false, zeroline: false, ticks: "outside", ticklen: 3 };
  const trace = {
    type: "heatmap", z: rows.map((row) => Array.from(row, scale.place)),
    customdata: rows.map((row) => Array.from(row, shown)), text: rows.map(() => doc.tokens.map((t) => plain(visible(t)))),
    hovertemplate: `<b>%{text}</b> · token %{x}<br>${measure.axis} %{y}: %{customdata}<extra></extra>`,
    zmin: scale.low, zmax: scale.high, colorscale: scale.stops.map((c, i) => [i / (scale.stops.length - 1), c]),
    colorbar: { title: { text: plain(withUnit(measure)), side: "right", font: { size: 12 } }, thickness: 14, outlinewidth: 0, tickfont: { size: 11, color: colours().muted }, ...ticksOf(scale) },
  };
  const layout = {
    title: {
      text: `<b>${plain(measure.label)} of every token</b>`, x: 0, xref: "paper", xanchor: "left", y: 1, yanchor: "top", pad: { t: 8, l: -60 }, font: { size: 17 },
      subtitle: { text: plain(`${report.stores[view.store].label} · ${doc.title} · ${count} tokens of 1 document`), font: { size: 12 } },
    },
    font: { family: "system-ui, sans-serif", size: 12 }, height: 480, margin: { t: 66, b: 112, l: 60, r: 10 },
    xaxis: { ...axis, title: { text: "Token, in the order of the text", standoff: 6 }, tickangle: -90, tickfont: { size: 10 }, tickvals: doc.tokens.map((_, i) => i), ticktext: doc.tokens.map((t) => plain(short(visible(t)))) },
    yaxis: { ...axis, title: { text: measure.axis === "layer" ? "Layer" : "Point of the residual stream" }, tickformat: "d" },
    shapes: [{ type: "rect", x0: view.token - 0.5, x1: view.token + 0.5, y0: -0.5, y1: rows.length - 0.5, line: { width: 1.5 } }],
  };
  const plot = byId("view-map");
  plot.style.minWidth = `${Math.max(820, 130 + 13 * count)}px`;
  const themedLayout = themed(layout);
  themedLayout.shapes[0].line.color = colours().ink;
  Plotly.react(plot, [trace], themedLayout, config("tokens"));
}

// Ticks 1, 2, 5 of every decade; only the decades where there are many.
function ticks125(rows) {
  const exponents = rows.flatMap((row) => Array.from(row, Math.log10)).filter(Number.isFinite);
  if (!exponents.length) return {};
  const [low, high] = [Math.floor(exponents.reduce((a, b) => Math.min(a, b))), Math.ceil(exponents.reduce((a, b) => Math.max(a, b)))];
  const values = [];
  for (let decade = low; decade <= high; decade += 1) {
    for (const digit of high - low > 3 ? [1] : [1, 2, 5]) values.push(Number(`${digit}e${decade}`));
  }
  return { tickvals: values, ticktext: values.map(String) };
}

function drawLine() {
  const doc = currentDocument();
  const measure = report.measures[view.measure];
  const rows = currentRows();
  const x = rows.map((_, i) => i);
  const of = (share) => rows.map((row) => quantile(Array.from(row), share));
  const grey = colours().muted;
  const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", legendgroup: "band" };
  const token = plain(short(visible(doc.tokens[view.token])));
  const traces = [
    { ...edge, y: of(0.1), showlegend: false },
    { ...edge, y: of(0.9), fill: "tonexty", fillcolor: "rgba(128,138,150,.22)", name: "Middle 80% of the document's tokens" },
    { x, y: of(0.5), mode: "lines", line: { color: grey, width: 1.5, dash: "4px,3px" }, name: "Median token", hovertemplate: "%{y:.3g}" },
    { x, y: rows.map((row) => row[view.token]), mode: "lines+markers", line: { color: "#d55e00", width: 2.2 }, marker: { size: 6 }, name: `Token ${view.token}: ${token}`, hovertemplate: "%{y:.4g}" },
  ];
  const log = measure.scale === "logarithmic";
  const layout = {
    title: {
      text: `<b>Token ${view.token}, “${token}”, by ${measure.axis}</b>`, x: 0, xref: "paper", xanchor: "left", y: 1, yanchor: "top", pad: { t: 8, l: -60 }, font: { size: 17 },
      subtitle: { text: plain(`${doc.title} · row ${doc.firstRow + view.token} of the store · beside ${doc.tokens.length} tokens of 1 document`), font: { size: 12 } },
    },
    font: { family: "system-ui, sans-serif", size: 12 }, height: 360, margin: { t: 72, b: 84, l: 60, r: 12 },
    hovermode: "x unified", legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
    xaxis: { title: { text: measure.axis === "layer" ? "Layer" : "Point of the residual stream", standoff: 6 }, showline: true, ticks: "outside", zeroline: false, hoverformat: "d", unifiedhovertitle: { text: `<b>${measure.axis} %{x}</b>` } },
    yaxis: { title: { text: plain(measure.unit || measure.label) }, type: log ? "log" : "linear", ...(log ? ticks125(rows) : {}), showline: true, ticks: "outside", zeroline: measure.scale === "diverging", zerolinecolor: grey, range: measure.scale === "share" ? [-0.03, 1.03] : undefined },
  };
  Plotly.react("view-line", traces, themed(layout), config("token"));
}

function chooseToken(token) {
  if (token === view.token || !(token >= 0)) return;
  const spans = byId("view-text").querySelectorAll("span");
  spans[view.token]?.classList.remove("chosen");
  spans[view.token].tabIndex = -1;
  view.token = token;
  spans[token].classList.add("chosen");
  spans[token].tabIndex = 0;
  cancelAnimationFrame(chooseToken.frame);
  chooseToken.frame = requestAnimationFrame(() => {
    drawLine();
    Plotly.relayout("view-map", { "shapes[0].x0": token - 0.5, "shapes[0].x1": token + 0.5 });
  });
}

function drawView() {
  const doc = currentDocument();
  const levels = rowsOf(doc, view.measure).length;
  view.level = Math.min(view.level, levels - 1);
  view.token = Math.min(view.token, doc.tokens.length - 1);
  byId("view-level").max = levels - 1;
  byId("view-level").value = view.level;
  byId("level-label").textContent = `Text coloured by ${report.measures[view.measure].axis} ${view.level}`;
  drawText();
  drawMap();
  drawLine();
}

function fill(select, labels, chosen) {
  select.replaceChildren(...labels.map(([value, label]) => new Option(label, value, false, String(value) === String(chosen))));
}

function chooseStore(store) {
  view.store = store;
  chooseDocument(0);
}

function chooseDocument(number) {
  view.document = number;
  const store = report.stores[view.store];
  const measures = Object.keys(store.documents[number].values);
  if (!measures.includes(view.measure)) [view.measure] = measures;
  fill(byId("view-document"), store.documents.map((doc, i) => [i, doc.title]), number);
  fill(byId("view-measure"), measures.map((name) => [name, withUnit(report.measures[name])]), view.measure);
  view.token = Math.min(5, store.documents[number].tokens.length - 1);
  drawView();
}

function download() {
  const doc = currentDocument();
  const names = Object.keys(doc.values);
  const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = ["row,token_number,token,measure,level,value"];
  for (const name of names) {
    rowsOf(doc, name).forEach((row, level) => row.forEach((value, i) => {
      lines.push([doc.firstRow + i, i, quoted(doc.tokens[i]), name, level, Number.isFinite(value) ? value : ""].join(","));
    }));
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = `${doc.title.split(" · ")[0].toLowerCase().replaceAll(" ", "_")}_tokens.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function startView() {
  const stores = report.stores.map((store, i) => [i, store.label]).filter(([i]) => report.stores[i].documents.length);
  if (!stores.length) return;
  fill(byId("view-store"), stores, stores[0][0]);
  byId("store-choice").hidden = stores.length === 1;
  byId("view-store").addEventListener("change", (e) => chooseStore(Number(e.target.value)));
  byId("view-document").addEventListener("change", (e) => chooseDocument(Number(e.target.value)));
  byId("view-measure").addEventListener("change", (e) => { view.measure = e.target.value; drawView(); });
  byId("view-level").addEventListener("input", (e) => {
    view.level = Number(e.target.value);
    byId("level-label").textContent = `Text coloured by ${report.measures[view.measure].axis} ${view.level}`;
    drawText();
  });
  byId("view-download").addEventListener("click", download);
  const pointed = (event) => event.target.dataset.token && chooseToken(Number(event.target.dataset.token));
  byId("view-text").addEventListener("pointerover", pointed);
  byId("view-text").addEventListener("focusin", pointed);
  byId("view-text").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = byId("view-text").querySelectorAll("span")[view.token + step];
    if (!step || !next) return;
    event.preventDefault();
    next.focus();
  });
  view.store = stores[0][0];
  view.level = 8;
  chooseDocument(0);
  byId("view-map").on("plotly_hover", (event) => chooseToken(event.points[0].x));
  redraws.push(drawView);
}

setTheme("system");
startView();
