"use strict";
// Figures of the report, and the colours of the page: light, dark, or as the system has them.

const report = JSON.parse(document.getElementById("report-data").textContent);
const redraws = [];

function colours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    paper: read("--paper"), panel: read("--panel"), ink: read("--ink"), muted: read("--muted"),
    grid: read("--grid"), middle: read("--middle"), line: read("--line"),
  };
}

function themed(layout) {
  const c = colours();
  const copy = structuredClone(layout);
  copy.paper_bgcolor = copy.plot_bgcolor = c.paper;
  copy.font = { ...copy.font, color: c.ink };
  copy.hoverlabel = { ...copy.hoverlabel, bgcolor: c.panel, bordercolor: c.line, font: { ...copy.hoverlabel?.font, color: c.ink } };
  if (copy.title?.subtitle) copy.title.subtitle.font = { ...copy.title.subtitle.font, color: c.muted };
  for (const note of copy.annotations ?? []) note.font = { ...note.font, color: c.ink };
  for (const shape of copy.shapes ?? []) shape.line = { ...shape.line, color: c.muted };
  for (const [name, axis] of Object.entries(copy)) {
    if (!/^[xy]axis\d*$/.test(name)) continue;
    Object.assign(axis, { gridcolor: axis.showgrid === false ? undefined : c.grid, linecolor: c.muted, tickcolor: c.muted });
    axis.tickfont = { ...axis.tickfont, color: c.muted };
  }
  return copy;
}

function config(name) {
  return {
    responsive: true,
    displaylogo: false,
    displayModeBar: "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
    toImageButtonOptions: { format: "svg", filename: name },
  };
}

// The blue of the figures is too dim on black.
function themedTraces(traces) {
  if (document.documentElement.dataset.theme !== "dark") return structuredClone(traces);
  return JSON.parse(JSON.stringify(traces).replaceAll('"#0072b2"', '"#4ba3dc"'));
}

function drawFigures() {
  for (const [id, figure] of Object.entries(report.figures)) {
    Plotly.react(`${id}-plot`, themedTraces(figure.data), themed(figure.layout), config(id));
  }
}

function setTheme(choice) {
  const dark = choice === "dark" || (choice === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  button.textContent = `Colours: ${choice}`;
  button.setAttribute("aria-label", `Colours: ${choice}; press to change`);
  button.dataset.choice = choice;
  redraws.forEach((redraw) => redraw());
}

document.getElementById("theme").addEventListener("click", (event) => {
  const order = ["system", "light", "dark"];
  setTheme(order[(order.indexOf(event.currentTarget.dataset.choice) + 1) % 3]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  const { choice } = document.getElementById("theme").dataset;
  if (choice === "system") setTheme(choice);
});

redraws.push(drawFigures);
